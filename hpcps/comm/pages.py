"""Memory that processes share, in huge pages where the kernel makes some.

What is read at random, and does not fit into the caches, is slowed by pages of 4 KiB, each of which is looked up. Linux
gives shared memory small pages unless the administrator wants others (``shmem_enabled``); MADV_COLLAPSE (Linux 6.1)
makes huge ones of them whatever was set.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MOST_HUGE_BYTES = 32 << 20
"""Larger ones (512 MiB where pages have 64 KiB) would be taken for a part of a table"""
_MADV_POPULATE_WRITE, _MADV_COLLAPSE = 23, 25
_NO_ACCESS, _MAP_FIXED = 0, 0x10
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _huge_bytes() -> int:
    with contextlib.suppress(OSError, ValueError):  # a kernel without them
        size_bytes = int(Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").read_text())
        if size_bytes <= MOST_HUGE_BYTES:
            return size_bytes
    return 0


HUGE_BYTES = _huge_bytes()
"""Of a huge page; 0 where there are none"""


def map_shared(file: int, size_bytes: int) -> Array:
    """The memory of an open file, (size_bytes,) uint8, shared, from a huge page's beginning on: only there can it be in
    huge pages. It is there as long as the array, or a view of it. Raises OSError."""
    if size_bytes < HUGE_BYTES or not HUGE_BYTES:
        return np.frombuffer(mmap.mmap(file, size_bytes), np.uint8)
    around = _mapped(None, size_bytes + HUGE_BYTES, _NO_ACCESS, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
    start = -(-around // HUGE_BYTES) * HUGE_BYTES
    try:
        _mapped(start, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED, file)
    except OSError:
        _libc.munmap(around, size_bytes + HUGE_BYTES)
        raise
    memory = (ctypes.c_uint8 * size_bytes).from_address(start)
    weakref.finalize(memory, _libc.munmap, around, size_bytes + HUGE_BYTES).atexit = False  # others may still use it
    return np.ctypeslib.as_array(memory)


def _mapped(address: int | None, size_bytes: int, access: int, flags: int, file: int) -> int:
    found = _libc.mmap(address, size_bytes, access, flags, file, 0)
    if found == _FAILED:
        raise _error()
    assert isinstance(found, int)
    return found


def take(memory: Array, start: int, stop: int) -> None:
    """Take the pages of a part of memory that begins at a page, in one go: one by one each costs a fault, and where
    there is none left, that is the end of the process. Raises OSError."""
    try:
        _advise(memory, _MADV_POPULATE_WRITE, start, stop)
    except OSError as error:
        if error.errno != errno.EINVAL:  # else a kernel without it
            raise


def make_huge(memory: Array, start: int, stop: int) -> None:
    """Have a part of what `map_shared` has mapped in huge pages, as far as whole ones lie in it and the kernel has
    some, and take these. What is in it stays there."""
    if not HUGE_BYTES:
        return
    base = memory.ctypes.data
    start, stop = -(-(base + start) // HUGE_BYTES) * HUGE_BYTES - base, (base + stop) // HUGE_BYTES * HUGE_BYTES - base
    with contextlib.suppress(OSError):  # a kernel without it, or no such page
        for place in range(start, stop, HUGE_BYTES):  # where no page is taken, none is made huge
            _advise(memory, _MADV_POPULATE_WRITE, place, place + mmap.PAGESIZE)
        if start < stop:
            _advise(memory, _MADV_COLLAPSE, start, stop)


def advise(memory: Array, advice: str, start: int = 0) -> None:
    """Give the system a piece of advice about the memory from a page on, if it knows it."""
    if hasattr(mmap, advice):
        with contextlib.suppress(OSError):  # a kernel without it
            _advise(memory, getattr(mmap, advice), start, len(memory))


def _advise(memory: Array, advice: int, start: int, stop: int) -> None:
    if _libc.madvise(memory.ctypes.data + start, stop - start, advice):
        raise _error()


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
