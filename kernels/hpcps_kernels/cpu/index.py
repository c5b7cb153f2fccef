"""A hash table from int64 keys to row numbers: one probe, one cache line, sent for before it is needed.

Lookups in tables beyond the caches are bound by how many cache misses a core keeps under way.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.cpu._prefetch import prefetch
from hpcps_kernels.interface import Array

AHEAD = 24  # keys between the one that is looked up and the one whose cell is sent for


@kernel
def index_clear(table: Array) -> None:
    _check_capacity(table)
    _clear(table)


@kernel
def index_find(slots: Array, table: Array, keys: Array) -> None:
    _check_capacity(table)
    m, last = keys.shape[0], np.uint64(table.shape[0] - 1)
    for i in range(-AHEAD, m):
        if i + AHEAD < m:
            cell = _first_cell(keys[i + AHEAD], table)
            slots[i + AHEAD] = cell  # until it is looked at
            prefetch(table, cell, 0)
            prefetch(table, np.int64((np.uint64(cell) + np.uint64(1)) & last), 0)  # may begin a line
        if i >= 0:
            # Where keys differ is a coin toss, and a branch that is guessed wrong costs as much as the look-up: most
            # keys are in their first three cells, and there all are looked at. A key is in one cell at most.
            key, near = keys[i], np.uint64(slots[i])
            near = (near + np.uint64(table[near, 0] != key)) & last
            near = (near + np.uint64(table[near, 0] != key)) & last
            if table[near, 0] == key and table[near, 1] >= 0:
                slots[i] = table[near, 1]
            else:
                cell = _cell_from(slots[i], table, key)
                slots[i] = -1 if cell < 0 else table[cell, 1]


@kernel
def index_insert(slots: Array, table: Array, keys: Array, count: int) -> int:
    _check_capacity(table)
    m, before, most = keys.shape[0], count, table.shape[0] - table.shape[0] // 8
    for i in range(min(AHEAD, m)):
        prefetch(table, _first_cell(keys[i], table), 0)
    for i in range(m):
        if i + AHEAD < m:
            prefetch(table, _first_cell(keys[i + AHEAD], table), 0)
        cell = _cell(table, keys[i])
        if cell < 0 or table[cell, 1] < 0:
            if cell < 0 or count >= most:
                _take_back(table, keys, slots, i, before, count)
                raise ValueError("index: more than 7/8 of the table would be taken")
            table[cell, 0] = keys[i]
            table[cell, 1] = count
            count += 1
        slots[i] = table[cell, 1]
    return count


@part
def _take_back(table: Array, keys: Array, slots: Array, end: int, before: int, count: int) -> None:
    """Undo the insertions of keys[:end], the last one first: what lies behind it then stays in reach."""
    for i in range(end - 1, -1, -1):
        if count > before and slots[i] == count - 1:
            cell = _cell(table, keys[i])
            table[cell, 0] = 0
            table[cell, 1] = -1
            count -= 1


@kernel
def index_grow(new: Array, table: Array) -> None:
    _check_capacity(new)
    _check_capacity(table)
    taken = 0
    for i in range(table.shape[0]):
        taken += table[i, 1] >= 0
    if taken > new.shape[0] - new.shape[0] // 8:
        raise ValueError("index: more than 7/8 of the table would be taken")
    _clear(new)
    # No prefetching: to twice the cells, one walk through the old ones is two walks through the new ones.
    for i in range(table.shape[0]):
        if table[i, 1] >= 0:
            cell = _cell(new, table[i, 0])
            new[cell, 0] = table[i, 0]
            new[cell, 1] = table[i, 1]


@part
def _clear(table: Array) -> None:
    for i in range(table.shape[0]):
        table[i, 0] = 0
        table[i, 1] = -1


@part
def _cell(table: Array, key: Any) -> Any:
    """The cell that holds the key or is empty for it; -1 where a full table does not hold it."""
    return _cell_from(_first_cell(key, table), table, key)


@part
def _cell_from(cell: Any, table: Array, key: Any) -> Any:
    """The same, from the key's first cell on."""
    last = table.shape[0] - 1
    for _ in range(table.shape[0]):
        if table[cell, 1] < 0 or table[cell, 0] == key:
            return cell
        cell = (cell + 1) & last
    return -1


@part
def _first_cell(key: Any, table: Array) -> Any:
    """fmix64(key) modulo C."""
    h = np.uint64(key)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    h ^= h >> np.uint64(33)
    return np.int64(h & np.uint64(table.shape[0] - 1))


@part
def _check_capacity(table: Array) -> None:
    if table.shape[0] == 0 or table.shape[0] & (table.shape[0] - 1):
        raise ValueError("index: a table's length must be a power of two")
