"""A hash table from int64 keys to row numbers: one probe, one cache line, sent for before it is needed.

Lookups in tables beyond the caches are bound by how many cache misses a core keeps under way, others by instructions:
the cells of a group are compared all at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.cpu._prefetch import prefetch
from hpcps_kernels.cpu._vectors import indices, spread
from hpcps_kernels.interface import Array

BLOCK = 1 << 14  # keys whose groups are computed at a time
AHEAD = 80  # keys between the one that is looked up and the one whose group is sent for
GROUP = 4  # cells: a cache line


@kernel
def index_clear(table: Array) -> None:
    _check_capacity(table)
    _clear(table)


@kernel
def index_find(slots: Array, table: Array, keys: Array) -> None:
    _check_capacity(table)
    for start in range(0, keys.shape[0], BLOCK):
        _find(slots[start : start + BLOCK], table, keys[start : start + BLOCK])


@part
def _find(slots: Array, table: Array, keys: Array) -> None:
    m, has_groups = keys.shape[0], table.shape[0] >= GROUP
    _first_cells(slots, table, keys)
    for i in range(m):
        if i + AHEAD < m:
            prefetch(table, slots[i + AHEAD], 0)
        slot = _slot_in_group(table, slots[i], keys[i]) if has_groups else -1
        if slot < 0:
            cell = _cell_from(slots[i], table, keys[i])
            slot = -1 if cell < 0 else table[cell, 1]
        slots[i] = slot


@kernel
def index_insert(slots: Array, table: Array, keys: Array, count: int) -> int:
    _check_capacity(table)
    before = count
    for start in range(0, keys.shape[0], BLOCK):
        own, its_slots = keys[start : start + BLOCK], slots[start : start + BLOCK]
        done, count = _insert(its_slots, table, own, count)
        if done < own.shape[0]:
            _take_back(table, keys, slots, start + done, before, count)
            raise ValueError("index: more than 7/8 of the table would be taken")
    return count


@part
def _insert(slots: Array, table: Array, keys: Array, count: int) -> tuple[int, int]:
    """How many keys were there, or could be inserted, until the table was full; and how many it holds then."""
    m, most = keys.shape[0], table.shape[0] - table.shape[0] // 8
    has_groups = table.shape[0] >= GROUP
    _first_cells(slots, table, keys)
    for i in range(m):
        if i + AHEAD < m:
            prefetch(table, slots[i + AHEAD], 0)
        slot = _slot_in_group(table, slots[i], keys[i]) if has_groups else -1
        if slot < 0:
            cell = _cell_from(slots[i], table, keys[i])
            if cell < 0 or table[cell, 1] < 0:
                if cell < 0 or count >= most:
                    return i, count
                table[cell, 0] = keys[i]
                table[cell, 1] = count
                count += 1
            slot = table[cell, 1]
        slots[i] = slot
    return m, count


@part
def _first_cells(slots: Array, table: Array, keys: Array) -> None:
    """The first cells of the keys' groups, where their slots will be; the first AHEAD of them are sent for. In vectors:
    key by key it takes as long as the rest of a look-up."""
    firsts = np.uint64(table.shape[0] - min(GROUP, table.shape[0]))
    for i in range(keys.shape[0]):
        slots[i] = np.int64(_hash(keys[i]) & firsts)
    for i in range(min(AHEAD, keys.shape[0])):
        prefetch(table, slots[i], 0)


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
    """The same, from the first cell of the key's group on."""
    last = table.shape[0] - 1
    for _ in range(table.shape[0]):
        if table[cell, 1] < 0 or table[cell, 0] == key:
            return cell
        cell = (cell + 1) & last
    return -1


@part
def _first_cell(key: Any, table: Array) -> Any:
    return np.int64(_hash(key) & np.uint64(table.shape[0] - min(GROUP, table.shape[0])))


def _slot_in(typing_context: Any, table: Any, cell: Any, key: Any) -> Any:
    """The key's slot, if it is in one of the GROUP cells from ``cell`` on; -1 where it is not. A key is in one cell at
    most, and an empty one has the slot -1: so the largest of the slots where the key is found, or -1, is the answer,
    without a branch that could be guessed wrong."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        cells = context.make_array(signature.args[0])(context, builder, arguments[0])
        number = ir.IntType(64)
        both, one = ir.VectorType(number, 2 * GROUP), ir.VectorType(number, GROUP)
        first = builder.gep(cells.data, [builder.mul(arguments[1], ir.Constant(number, 2))])
        group = builder.load(builder.bitcast(first, both.as_pointer()), align=8)
        keys, slots = (builder.shuffle_vector(group, group, indices(range(side, 2 * GROUP, 2))) for side in (0, 1))
        is_found = builder.icmp_signed("==", keys, spread(builder, arguments[2], one))
        found = builder.select(is_found, slots, ir.Constant(one, [-1] * GROUP))
        largest = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module, ir.FunctionType(number, [one]), f"llvm.vector.reduce.smax.v{GROUP}i64"
        )
        return builder.call(largest, [found])

    return types.int64(table, types.int64, types.int64), generate


_slot_in_group: Any = intrinsic(_slot_in)


@part
def _hash(key: Any) -> Any:
    """fmix64(key)."""
    h = np.uint64(key)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    h ^= h >> np.uint64(33)
    return h


@part
def _check_capacity(table: Array) -> None:
    if table.shape[0] == 0 or table.shape[0] & (table.shape[0] - 1):
        raise ValueError("index: a table's length must be a power of two")
