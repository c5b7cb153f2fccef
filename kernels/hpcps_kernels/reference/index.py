"""A hash table from int64 keys to row numbers ("slots"): open addressing, linear probing by groups of four cells.

A table is (C, 2) int64, C a power of two: column 0 holds keys, column 1 their slots, -1 where a cell is empty (its
key is then 0). Cell fmix64(key) modulo C is in the key's group, where fmix64 is the 64-bit finaliser of MurmurHash3
(Austin Appleby, https://github.com/aappleby/smhasher); the search begins at the first cell of the group and goes on
cell by cell to the key or an empty cell. A group is a cache line, where memory begins with one. Every kernel raises
ValueError for a C that is not a power of two, before it writes anything.
"""

from __future__ import annotations

import numpy as np

from hpcps_kernels.interface import Array

GROUP = 4


def index_clear(table: Array) -> None:
    """Make table (C, 2) int64 empty: every cell's key 0, its slot -1."""
    _check_capacity(table)
    table[:] = 0, -1


def index_find(slots: Array, table: Array, keys: Array) -> None:
    """slots[i] = the slot of keys[i], -1 where the table does not hold it.

    slots (m,) int64 is overwritten; table (C, 2), keys (m,) int64, any values.
    """
    _check_capacity(table)
    for i, (key, first) in enumerate(zip(keys, _first_cells(keys, table), strict=True)):
        cell = _cell(table, key, first)
        slots[i] = -1 if cell < 0 else table[cell, 1]


def index_insert(slots: Array, table: Array, keys: Array, count: int) -> int:
    """slots[i] = the slot of keys[i], which is put in where it is absent; returns the new count.

    slots (m,) int64 is overwritten; table (C, 2) is updated in place; keys (m,) int64, any values, may repeat. count
    is how many keys the table holds: new ones get slots count, count + 1, ... in order of first occurrence. Raises
    ValueError where more than 7/8 of the cells would be taken: the table is then as it was before the call, slots
    hold anything.
    """
    _check_capacity(table)
    filled = table.copy()
    for i, (key, first) in enumerate(zip(keys, _first_cells(keys, table), strict=True)):
        cell = _cell(filled, key, first)
        if cell < 0 or filled[cell, 1] < 0:
            if cell < 0 or count >= len(table) - len(table) // 8:
                raise ValueError("index: more than 7/8 of the table would be taken")
            filled[cell] = key, count
            count += 1
        slots[i] = filled[cell, 1]
    table[:] = filled
    return int(count)


def index_grow(new: Array, table: Array) -> None:
    """Put every key of table (C, 2), cell by cell, into new (C2, 2), which is cleared first; slots stay.

    Raises ValueError where more than 7/8 of new would be taken; new is then left as it was.
    """
    _check_capacity(new)
    _check_capacity(table)
    taken = table[table[:, 1] >= 0]
    if len(taken) > len(new) - len(new) // 8:
        raise ValueError("index: more than 7/8 of the table would be taken")
    index_clear(new)
    for entry, first in zip(taken, _first_cells(taken[:, 0], new), strict=True):
        new[_cell(new, entry[0], first)] = entry


def _cell(table: Array, key: int, first: int) -> int:
    """The cell that holds the key or is empty for it; -1 where a full table does not hold it."""
    for step in range(len(table)):
        cell = (int(first) + step) % len(table)
        if table[cell, 1] < 0 or table[cell, 0] == key:
            return cell
    return -1


def _first_cells(keys: Array, table: Array) -> Array:
    """The first cells of the groups of fmix64(keys) modulo C."""
    h = keys.astype(np.uint64)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        h ^= h >> np.uint64(33)
        h *= np.uint64(factor)
    h ^= h >> np.uint64(33)
    cells = h % np.uint64(len(table))
    return cells - cells % np.uint64(min(GROUP, len(table)))


def _check_capacity(table: Array) -> None:
    if len(table).bit_count() != 1:
        raise ValueError("index: a table's length must be a power of two")
