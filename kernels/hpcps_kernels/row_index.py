"""Numbers the rows of a table whose rows are made when their keys are first met."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hpcps_kernels.interface import Array, Kernels

LOAD = 2  # cells a key, at least, between calls
LINE = 8  # int64 in a cache line


class RowIndex:
    """A map from int64 keys to slots 0, 1, 2, ... in order of first insertion; the same on every back end.

    `capacity` keys fit before it first grows; it then doubles. Its memory is 32 to 64 bytes a key, and once half as
    much more while it grows. `empty` gives memory for so many int64, in whole cache lines. Not safe to call from
    several threads, except for `find` while nothing is inserted.
    """

    def __init__(self, kernels: Kernels, capacity: int = 1024, empty: Callable[[int], Array] | None = None) -> None:
        self._kernels, self._count, self._empty = kernels, 0, empty or in_lines
        self._table = self._cells(1 << max(LOAD * capacity - 1, 7).bit_length())
        kernels.index_clear(self._table)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes of its memory."""
        return self._table.nbytes

    @property
    def keys(self) -> Array:
        """The keys (len(self),) int64 in order of their slots, a copy."""
        held = self._table[self._table[:, 1] >= 0]
        keys = np.empty(self._count, np.int64)
        keys[held[:, 1]] = held[:, 0]
        return keys

    def find(self, keys: Array) -> Array:
        """The slots (m,) int64 of keys (m,) int64, -1 for one that was never inserted."""
        return find(self._kernels, self._table, keys)

    def insert(self, keys: Array) -> Array:
        """The slots (m,) int64 of keys (m,) int64; new keys get the next ones, in order of first occurrence."""
        slots = np.empty(len(keys), np.int64)
        start = 0
        while start < len(keys):
            # At most half of the cells are taken here, and 7/8 may be: a good part of the keys goes in at once.
            cells = len(self._table)
            part = slice(start, start + cells - cells // 8 - self._count)
            self._count = self._kernels.index_insert(slots[part], self._table, keys[part], self._count)
            if LOAD * self._count > cells:
                self._grow()
            start = part.stop
        return slots

    def _grow(self) -> None:
        larger = self._cells(2 * len(self._table))
        self._kernels.index_grow(larger, self._table)
        self._table = larger

    def _cells(self, count: int) -> Array:
        return self._empty(2 * count).reshape(count, 2)


def in_lines(numbers: int) -> Array:
    """Memory for so many int64 that begins with a cache line."""
    room = np.empty(numbers + LINE - 1, np.int64)
    start = -room.ctypes.data // room.itemsize % LINE
    return room[start : start + numbers]


def find(kernels: Kernels, cells: Array, keys: Array) -> Array:
    """The slots (m,) int64 of keys (m,) int64 in the memory of an index, (cells, 2) int64; -1 for one that is not
    there."""
    slots = np.empty(len(keys), np.int64)
    kernels.index_find(slots, cells, keys)
    return slots
