"""Rows picked out of a data set or a table by number, and the numbers of keys."""

from __future__ import annotations

import numpy as np

from hpcps_kernels.cpu import _unique
from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.cpu._prefetch import LINE_BYTES, prefetch, prefetch_row
from hpcps_kernels.cpu._row_moves import add_row, add_row_fixed, copy_row
from hpcps_kernels.interface import Array

AHEAD_BYTES = 1024  # between the row that is converted and the one that is sent for
MOST_AHEAD = 16  # rows: a core has about that many cache lines under way
BLOCK = 1024  # indices that are checked at once


@kernel
def gather(out: Array, source: Array, index: Array, shift: Array, scale: Array) -> None:
    to = out.dtype.type
    line = LINE_BYTES // source.itemsize
    ahead = max(1, AHEAD_BYTES // max(1, source.shape[1] * source.itemsize))
    for i in range(index.shape[0]):
        if index[i] < 0 or index[i] >= source.shape[0]:
            raise IndexError("rows: an index is outside 0..N-1")
        soon = index[min(i + ahead, index.shape[0] - 1)]
        for d in range(0, source.shape[1], line):
            prefetch(source, soon, d)
        into, row = out[i], source[index[i]]
        for d in range(into.shape[0]):
            into[d] = (to(row[d]) - shift[d]) * scale[d]


@kernel
def gather_csr(
    out: Array, indptr: Array, indices: Array, values: Array, index: Array, shift: Array, scale: Array
) -> None:
    to = out.dtype.type
    for i in range(index.shape[0]):
        if index[i] < 0 or index[i] >= indptr.shape[0] - 1:
            raise IndexError("rows: an index is outside 0..N-1")
        into, start, stop = out[i], indptr[index[i]], indptr[index[i] + 1]
        if start < 0 or stop < start or stop > indices.shape[0]:
            raise IndexError("gather_csr: a row has entries outside the arrays or columns outside 0..D-1")
        for d in range(into.shape[0]):
            into[d] = (to(0) - shift[d]) * scale[d]
        for j in range(start, stop):
            d = indices[j]
            if d < 0 or d >= into.shape[0]:
                raise IndexError("gather_csr: a row has entries outside the arrays or columns outside 0..D-1")
            into[d] = (to(values[j]) - shift[d]) * scale[d]


@kernel
def gather_rows(out: Array, table: Array, index: Array) -> None:
    m, ahead = index.shape[0], _rows_ahead(table)
    for start in range(0, m, BLOCK):
        stop = min(start + BLOCK, m)
        _check_index(index[start:stop], table.shape[0])
        if table.shape[1] == 1:
            for i in range(start, stop):
                out[i, 0] = table[np.uint64(index[i]), 0]
        else:
            for i in range(start, stop):
                prefetch_row(table, index[min(i + ahead, m - 1)])
                copy_row(out, i, table, index[i])


@kernel
def gather_leading(out: Array, table: Array, index: Array) -> None:
    m, width, line = index.shape[0], out.shape[1], LINE_BYTES // table.itemsize
    if table.shape[1] < width:
        raise ValueError("gather_leading: the table's rows are narrower than out's")
    ahead = _rows_ahead(out)
    for start in range(0, m, BLOCK):
        stop = min(start + BLOCK, m)
        _check_index(index[start:stop], table.shape[0])
        if width == 1:
            for i in range(start, stop):
                prefetch(table, index[min(i + ahead, stop - 1)], 0)
                out[i, 0] = table[np.uint64(index[i]), 0]
            continue
        for i in range(start, stop):
            soon, d = index[min(i + ahead, stop - 1)], 0
            while d < width:
                prefetch(table, soon, d)
                d += line
            prefetch(table, soon, width - 1)  # rows begin anywhere in a line
            copy_row(out, i, table, index[i])


@kernel
def scatter_rows(table: Array, rows: Array, index: Array) -> None:
    _check_index(index, table.shape[0])
    m, ahead = index.shape[0], _rows_ahead(table)
    if table.shape[1] == 1:
        for i in range(m):
            prefetch(table, index[min(i + ahead, m - 1)], 0)
            table[np.uint64(index[i]), 0] = rows[i, 0]
    else:
        for i in range(m):
            prefetch_row(table, index[min(i + ahead, m - 1)])
            copy_row(table, index[i], rows, i)


@kernel
def scatter_add_rows(table: Array, rows: Array, index: Array) -> None:
    _check_index(index, table.shape[0])
    m, ahead = index.shape[0], _rows_ahead(table)
    if table.shape[1] == 1:
        for i in range(m):
            prefetch(table, index[min(i + ahead, m - 1)], 0)
            table[np.uint64(index[i]), 0] += rows[i, 0]
    else:
        for i in range(m):
            prefetch_row(table, index[min(i + ahead, m - 1)])
            add_row(table, index[i], rows, i)


@kernel
def scatter_add_rows_fixed(table: Array, rows: Array, index: Array, scale: float) -> None:
    _check_index(index, table.shape[0])
    m, ahead = index.shape[0], _rows_ahead(table)
    for i in range(m):
        prefetch_row(table, index[min(i + ahead, m - 1)])
        add_row_fixed(table, index[i], rows, i, scale)


@part
def _rows_ahead(table: Array) -> int:
    row_bytes: int = table.shape[1] * table.itemsize
    return max(1, min(MOST_AHEAD, 2 * AHEAD_BYTES // max(1, row_bytes)))


@part
def _check_index(index: Array, rows: int) -> None:
    outside = False
    for i in range(index.shape[0]):
        outside |= (index[i] < 0) | (index[i] >= rows)
    if outside:
        raise IndexError("rows: an index is outside 0..N-1")


@kernel
def localize(keys: Array, inverse: Array, x: Array, slots: Array) -> int:
    n, count, places = x.shape[0], 0, slots.reshape(slots.shape[0], 1)
    for i in range(n):
        prefetch(places, x[min(i + MOST_AHEAD, n - 1)], 0)
        key = np.int64(x[i])
        if key < 0 or key >= slots.shape[0]:
            _set_free(slots, keys[:count])
            raise IndexError("rows: an index is outside 0..N-1")
        # Without a branch on whether the key is new, which nothing could predict.
        slot = slots[key]
        slot = count if slot < 0 else slot
        slots[key] = slot
        inverse[i] = slot
        keys[count] = key
        count += slot == count
    _set_free(slots, keys[:count])
    keys[count:] = 0
    return count


@part
def _set_free(slots: Array, keys: Array) -> None:
    places, last = slots.reshape(slots.shape[0], 1), keys.shape[0] - 1
    for i in range(keys.shape[0]):
        prefetch(places, keys[min(i + MOST_AHEAD, last)], 0)
        slots[keys[i]] = -1


def unique(keys: Array, inverse: Array, x: Array) -> int:
    # NumPy asks for huge pages, Numba does not; pages that are not touched cost nothing.
    scratch = np.empty(_unique.scratch_words(len(x)), np.uint64)
    found: int = number_distinct(keys, inverse, x, scratch)
    return found


@kernel
def number_distinct(keys: Array, inverse: Array, x: Array, scratch: Array) -> int:
    n = x.shape[0]
    if n == 0:
        return 0
    base, mask = _unique.varying_bits(x)
    segments, width = _unique.segments_of(mask)
    if width <= _unique.widest_bitmap(n):
        count: int = _unique.unique_by_bitmap(keys, inverse, x, base, segments, width, scratch)
    else:
        count = _unique.unique_by_sorting(keys, inverse, x, base, segments, width, scratch[:n])
    keys[count:] = 0
    return count
