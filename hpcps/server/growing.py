"""Rows that grow without being copied: their addresses are reserved, and memory comes as they are taken."""

from __future__ import annotations

import contextlib
import mmap
import os

import numpy as np
from numpy.typing import DTypeLike

from hpcps.comm import pages
from hpcps.comm.memory import Memory
from hpcps.comm.transport import Array
from hpcps.errors import CommError

FEW_BYTES = 1 << 20
"""Reserved at first where the system does not let a program reserve all there is (overcommit off, ulimit -v)."""
MOST_AHEAD_BYTES = 16 << 20


class GrowingRows:
    """``array`` is (capacity, width), as many rows as fit into the machine's memory; its user takes them in order.

    Rows hold anything until they are written. ``memory``: that of ranks which are to see them, by ``ticket``; it is
    None where they cannot. Not safe to call from several threads. A process that is forked has none of this memory: it
    would count twice what is reserved, which is more than many a system grants.
    """

    array: Array

    def __init__(self, width: int, dtype: DTypeLike, memory: Memory | None = None) -> None:
        self._width, self._dtype = width, np.dtype(dtype)
        self.row_bytes = width * self._dtype.itemsize
        self.ticket: Array | None = None
        self._memory, self._taken = memory, 0
        size_bytes = max(self.row_bytes, os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE)
        if memory is not None:
            with contextlib.suppress(CommError):  # then nobody sees them
                self._bytes, self.ticket = memory.reserve(size_bytes)
        if self.ticket is None:
            self._memory, self._own = None, _reserved(size_bytes)
            self._bytes = np.frombuffer(self._own, np.uint8)
        self._view()

    def reserve(self, rows: int) -> None:
        """Make room for so many rows. Nothing is copied; where the array has to grow, earlier views of it must be gone.

        Raises MemoryError.
        """
        if rows <= len(self.array):
            return
        if self.ticket is not None:
            raise MemoryError(f"no room for {rows} rows of {self.row_bytes} bytes")
        size_bytes = max(2 * len(self._bytes), rows * self.row_bytes)
        del self.array, self._bytes
        try:
            self._own.resize(size_bytes)
        except OSError as error:
            raise MemoryError(f"no room for {rows} rows of {self.row_bytes} bytes: {error}") from error
        finally:
            self._bytes = np.frombuffer(self._own, np.uint8)
            self._view()

    def give_back(self, rows: int) -> None:
        """Keep the first so many rows alone; the memory of the others goes back to the system."""
        start = -(-rows * self.row_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if start < len(self._bytes):
            pages.advise(self._bytes, "MADV_DONTNEED", start)
            pages.advise(self._bytes, "MADV_REMOVE", start)  # of memory that processes share; of other it is refused
            self._taken = min(self._taken, start)

    def take(self, rows: int) -> None:
        """Take the pages of so many rows, for which there is room, and some more: they come faster than when they are
        first written. Raises MemoryError."""
        size_bytes = rows * self.row_bytes
        if size_bytes <= self._taken:
            return
        wanted = size_bytes + min(self._taken // 8, MOST_AHEAD_BYTES)
        page_bytes = pages.HUGE_BYTES if 0 < pages.HUGE_BYTES <= wanted + mmap.PAGESIZE else mmap.PAGESIZE
        end = min(-(-wanted // page_bytes) * page_bytes, len(self._bytes))
        take(self._bytes, self._taken // page_bytes * page_bytes, end, self._memory)
        self._taken = end

    def _view(self) -> None:
        pages.advise(self._bytes, "MADV_DONTFORK")
        pages.advise(self._bytes, "MADV_HUGEPAGE")  # rows picked at random would miss the table of small pages
        rows = len(self._bytes) // self.row_bytes
        self.array = self._bytes[: rows * self.row_bytes].view(self._dtype).reshape(rows, self._width)


def take(array: Array, start: int, stop: int, memory: Memory | None) -> None:
    """Take the pages of a part of an array that begins at a page, which ``memory`` has reserved, if it is given. Raises
    MemoryError."""
    try:
        (pages if memory is None else memory).take(array, start, stop)
    except OSError as error:
        raise MemoryError(f"no room for {stop - start} bytes of rows: {error}") from error


def _reserved(all_bytes: int) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        return mmap.mmap(-1, all_bytes, flags=flags)
    except OSError:
        return mmap.mmap(-1, FEW_BYTES, flags=flags)
