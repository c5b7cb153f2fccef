"""Rows that grow without being copied: their addresses are reserved, and memory comes as rows are first written."""

from __future__ import annotations

import contextlib
import mmap
import os

import numpy as np
from numpy.typing import DTypeLike

from hpcps.comm.transport import Array

FEW_BYTES = 1 << 20
"""Reserved at first where the system does not let a program reserve all there is (overcommit off, ulimit -v)."""


class GrowingRows:
    """``array`` is (capacity, width), as many rows as fit into the machine's memory; its user takes them in order.

    Rows hold anything until they are written. Not safe to call from several threads. A process that is forked has none
    of this memory: it would count twice what is reserved, which is more than many a system grants.
    """

    array: Array

    def __init__(self, width: int, dtype: DTypeLike) -> None:
        self._width, self._dtype = width, np.dtype(dtype)
        self.row_bytes = width * self._dtype.itemsize
        self._memory = _reserved(max(self.row_bytes, os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE))
        self._view()

    def reserve(self, rows: int) -> None:
        """Make room for so many rows. Nothing is copied; where the array has to grow, earlier views of it must be gone.

        Raises MemoryError.
        """
        if rows <= len(self.array):
            return
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
        if start < len(self._memory) and hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED, start)

    def _view(self) -> None:
        _advise(self._memory, "MADV_DONTFORK")
        _advise(self._memory, "MADV_HUGEPAGE")  # rows picked at random would miss the table of small pages
        rows = len(self._memory) // self.row_bytes
        self.array = np.frombuffer(self._memory, self._dtype, rows * self._width).reshape(rows, self._width)


def _reserved(all_bytes: int) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        return mmap.mmap(-1, all_bytes, flags=flags)
    except OSError:
        return mmap.mmap(-1, FEW_BYTES, flags=flags)


def _advise(memory: mmap.mmap, advice: str) -> None:
    """Give the system a piece of advice, if it knows it."""
    if hasattr(mmap, advice):
        with contextlib.suppress(OSError):  # a kernel without it
            memory.madvise(getattr(mmap, advice))
