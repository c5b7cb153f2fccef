"""What hpcps does about MPI libraries before they start: without one."""

import ctypes

import pytest

from hpcps.comm import mpi

SIZE_BYTES = 4096


def test_memory_is_zeros_while_mpich_starts_under_slurm():
    """Else what other code has left there makes MPICH's messages too long for Slurm."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        pytest.skip("the C library has no mallopt")
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]

    def content(writes=0):
        places = [library.malloc(SIZE_BYTES) for _ in range(50)]
        found = {ctypes.string_at(place, SIZE_BYTES) for place in places}
        for place in places:
            ctypes.memset(place, writes, SIZE_BYTES)
            library.free(place)
        return found

    content(writes=7)
    assert content(writes=7) != {bytes(SIZE_BYTES)}
    with mpi._zeroed_memory():
        assert content() == {bytes(SIZE_BYTES)}
    content(writes=7)
    assert content() != {bytes(SIZE_BYTES)}
