"""Memory that the ranks of a node share: of processes, which the ranks here stand for (tests/mpi has real ones), and of
threads."""

import gc
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from hpcps.comm import memory
from hpcps.comm.local import LocalTransport
from hpcps.comm.memory import TICKET_BYTES, ProcessMemory
from hpcps.errors import CommError

KINDS = [ProcessMemory, LocalTransport.make_memory]  # of processes; of threads


def open_files():
    return {
        os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if name.isdigit() and live(name)
    }


def live(name):
    return Path(f"/proc/self/fd/{name}").is_symlink()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("size", [0, 1, 4096, 100_001])
def test_every_rank_sees_what_the_others_write(on_ranks, kind, ranks, size):
    def body(transport):
        shared = kind(transport)
        pieces = shared.pieces(size)
        assert [piece.shape for piece in pieces] == [(size,)] * ranks
        assert not any(piece.any() for piece in pieces)
        transport.barrier()
        pieces[transport.rank][:] = transport.rank + 1
        transport.barrier()
        assert all((piece == rank + 1).all() for rank, piece in enumerate(pieces))
        transport.barrier()

    on_ranks(ranks, body)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 1000])
@pytest.mark.parametrize("dtype", ["float32", "int64", "uint16"])
def test_an_array_lies_in_a_region_where_all_find_it(on_ranks, kind, count, dtype):
    def body(transport):
        shared = kind(transport)
        mine = shared.empty(count, dtype)
        assert mine.shape == (count,)
        assert mine.dtype == dtype
        assert count == 0 or mine.ctypes.data % 64 == 0
        size, starts = shared.regions[-1]
        offset = mine.ctypes.data - starts[transport.rank]
        assert 0 <= offset <= size - mine.nbytes
        mine[:] = transport.rank
        transport.barrier()
        other = (transport.rank + 1) % transport.size
        if kind is ProcessMemory:
            found = np.frombuffer(memory.array_at(starts[other] + offset, mine.nbytes), dtype)
            assert (found == other).all()
        transport.barrier()

    on_ranks(3, body)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16"])
def test_what_the_others_have_lies_beside_it(on_ranks, kind, dtype):
    def body(transport):
        shared = kind(transport)
        arrays = [shared.empty(count, dtype) for count in (3000, 0, 10)]
        for array in arrays:
            array[:] = np.arange(len(array)) + 100 * transport.rank
        transport.barrier()
        for array in arrays:
            for part in (array, array[3:], array[2:9]):
                rows, column = shared.beside(part)
                assert rows.dtype == dtype
                assert rows.flags.c_contiguous
                assert len(rows) == transport.size
                first = 0 if part is array or not len(part) else int(part[0]) - 100 * transport.rank
                for rank, row in enumerate(rows):
                    there = row[column : column + len(part)]
                    np.testing.assert_array_equal(there, (first + np.arange(len(part)) + 100 * rank).astype(dtype))
        for other in (np.zeros(10, dtype), shared.common(10, dtype), np.empty(0, dtype)):
            assert shared.beside(other) is None
        transport.barrier()

    on_ranks(3, body)


def test_ranks_of_other_nodes_see_nothing(on_ranks):
    def body(transport):
        shared = ProcessMemory(transport)
        assert shared.nodes == [[0, 2], [1]]
        assert shared.near.size == (1 if transport.rank == 1 else 2)
        shared.empty(10, np.float32)
        assert [len(starts) for _, starts in shared.regions] == [shared.near.size]

    on_ranks(3, body, nodes=["a", "b", "a"])


def test_what_a_thread_shared_outlives_it(on_ranks):
    """A rank that has finished, and is forgotten, may still be looked at by others."""

    def body(transport):
        pieces = transport.memory.pieces(1 << 20)
        pieces[transport.rank][:] = 7
        transport.barrier()
        if transport.rank == 1:
            return None
        return pieces[1], transport.world

    (theirs, world), _ = on_ranks(2, body)
    gc.collect()
    assert (theirs == 7).all()
    assert not world.shared


def test_what_a_thread_lent_outlives_it(on_ranks):
    def body(transport):
        if transport.rank == 1:
            lent = transport.memory.lend(1000)
            lent.array[:] = 7
            ticket = lent.ticket.copy()
        else:
            transport.memory  # noqa: B018  (to make it is a collective)
            ticket = np.empty(TICKET_BYTES, np.uint8)
        transport.wait(transport.isend(ticket, 0, 1) if transport.rank else transport.irecv(ticket, 1, 1))
        return transport.memory, ticket

    (memory, ticket), _ = on_ranks(2, body)
    gc.collect()
    assert (memory.borrow(ticket) == 7).all()


def test_memory_that_cannot_be_taken_everywhere_is_given_back(on_ranks, monkeypatch):
    """A rank may have taken its share when another cannot."""
    allocate = os.posix_fallocate

    def full_but_first(file, start, size):
        if start:
            raise OSError(28, "No space left on device")
        allocate(file, start, size)

    class Mapped(memory.mmap.mmap):
        pass

    monkeypatch.setattr("hpcps.comm.memory.os.posix_fallocate", full_but_first)
    monkeypatch.setattr("hpcps.comm.memory.mmap.mmap", Mapped)
    gc.disable()
    try:
        on_ranks(2, lambda transport: ProcessMemory(transport).empty(10, np.float32))
        assert not [found for found in gc.get_objects() if type(found) is Mapped]
    finally:
        gc.enable()


def test_nothing_is_left_behind(on_ranks):
    before = set(os.listdir("/dev/shm")), open_files()
    on_ranks(3, lambda transport: ProcessMemory(transport).pieces(100))
    assert not {name for name in set(os.listdir("/dev/shm")) - before[0] if name.startswith("hpcps")}
    assert not {name for name in open_files() - before[1] if "hpcps" in name}


def test_too_little_memory_is_an_error_on_all_ranks_and_arrays_are_then_private(on_ranks, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hpcps.comm.memory.os.posix_fallocate", full)

    def body(transport):
        shared = ProcessMemory(transport)
        with pytest.raises(CommError, match="cannot take 4096 bytes of shared memory: No space left"):
            shared.pieces(100)
        x = shared.empty(10, np.float32)
        assert shared.regions == []
        x[:] = transport.rank

    on_ranks(3, body)


def test_a_file_of_another_process_is_not_touched(on_ranks, monkeypatch, tmp_path):
    """Ranks that name the same node but are not on it may find a process of the first rank's number there."""
    (tmp_path / "precious").write_bytes(b"x" * 8192)
    with (tmp_path / "precious").open("r+b") as file:
        monkeypatch.setattr("hpcps.comm.memory._create", lambda name, size: os.dup(file.fileno()))
        _, errors = on_ranks.run(2, lambda transport: ProcessMemory(transport).pieces(10))
    assert all("is no memory of this job" in str(error) for error in errors)
    assert (tmp_path / "precious").read_bytes() == b"x" * 8192


def test_ranks_that_see_different_memory_are_an_error(on_ranks, monkeypatch):
    monkeypatch.setattr("hpcps.comm.memory._open", lambda path, name, size, taken: np.zeros(size, np.uint8))
    _, errors = on_ranks.run(2, lambda transport: ProcessMemory(transport).pieces(10))
    assert all("do not see the same memory" in str(error) for error in errors)


@pytest.fixture
def few_files():
    """Few open files are allowed, but the process may allow itself more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(open_files()) + 60, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_more_memory_is_reserved_than_files_were_allowed(on_ranks, few_files):
    def body(transport):
        shared = ProcessMemory(transport)
        kept = [shared.reserve(4096) for _ in range(50)]
        seen = [shared.borrow(one.ticket) for one in kept]
        assert all(len(one) == 4096 for one in seen)

    on_ranks(1, body)
