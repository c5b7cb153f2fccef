"""Rows that grow without being copied: their addresses are reserved, and memory comes as they are taken."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os

import numpy as np
from numpy.typing import DTypeLike

from hpcps.comm.memory import Memory
from hpcps.comm.transport import Array
from hpcps.errors import CommError

FEW_BYTES = 1 << 20
"""Reserved at first where the system does not let a program reserve all there is (overcommit off, ulimit -v)."""
MOST_AHEAD_BYTES = 16 << 20
_MADV_POPULATE_WRITE = 23


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
        self._taken = 0
        size_bytes = max(self.row_bytes, os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE)
        if memory is not None:
            with contextlib.suppress(CommError):  # then nobody sees them
                self._memory, self.ticket = memory.reserve(size_bytes)
        if self.ticket is None:
            self._memory = _reserved(size_bytes)
        self._view()

    def reserve(self, rows: int) -> None:
        """Make room for so many rows. Nothing is copied; where the array has to grow, earlier views of it must be gone.

        Raises MemoryError.
        """
        if rows <= len(self.array):
            return
        if self.ticket is not None:
            raise MemoryError(f"no room for {rows} rows of {self.row_bytes} bytes")
        del self.array
        try:
            self._memory.resize(max(2 * len(self._memory), rows * self.row_bytes))
        except OSError as error:
            raise MemoryError(f"no room for {rows} rows of {self.row_bytes} bytes: {error}") from error
        finally:
            self._view()

    def give_back(self, rows: int) -> None:
        """Keep the first so many rows alone; the memory of the others goes back to the system."""
        start = -(-rows * self.row_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if start < len(self._memory):
            _advise(self._memory, "MADV_DONTNEED", start)
            _advise(self._memory, "MADV_REMOVE", start)  # of memory that processes share; of other it is refused
            self._taken = min(self._taken, start)

    def take(self, rows: int) -> None:
        """Take the pages of so many rows, for which there is room, and some more: they come faster than when they are
        first written. Raises MemoryError."""
        size_bytes = rows * self.row_bytes
        if size_bytes <= self._taken:
            return
        ahead = min(self._taken // 8, MOST_AHEAD_BYTES)
        end = min(-(-(size_bytes + ahead) // mmap.PAGESIZE) * mmap.PAGESIZE, len(self._memory))
        take(self._memory, self._taken, end)
        self._taken = end

    def _view(self) -> None:
        _advise(self._memory, "MADV_DONTFORK")
        _advise(self._memory, "MADV_HUGEPAGE")  # rows picked at random would miss the table of small pages
        rows = len(self._memory) // self.row_bytes
        self.array = np.frombuffer(self._memory, self._dtype, rows * self._width).reshape(rows, self._width)


def take(memory: mmap.mmap, start: int, stop: int) -> None:
    """Take the pages of a part of memory that begins at a page, in one go: one by one each costs a fault, and where
    there is none left, that is the end of the process. Raises MemoryError."""
    try:
        memory.madvise(_MADV_POPULATE_WRITE, start, stop - start)
    except OSError as error:
        if error.errno != errno.EINVAL:  # else a kernel without it
            raise MemoryError(f"no room for {stop - start} bytes of rows: {error}") from error


def _reserved(all_bytes: int) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        return mmap.mmap(-1, all_bytes, flags=flags)
    except OSError:
        return mmap.mmap(-1, FEW_BYTES, flags=flags)


def _advise(memory: mmap.mmap, advice: str, start: int = 0) -> None:
    """Give the system a piece of advice, if it knows it."""
    if hasattr(mmap, advice):
        with contextlib.suppress(OSError):  # a kernel without it
            memory.madvise(getattr(mmap, advice), start)
