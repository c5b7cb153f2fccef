"""Rows picked out of a data set or a table by number, and the numbers of keys."""

from __future__ import annotations

import numpy as np

from hpcps_kernels.interface import Array


def gather(out: Array, source: Array, index: Array, shift: Array, scale: Array) -> None:
    """out[i] = (source[index[i]] - shift) * scale in F; overwrites out.

    out (m, D) F; source (N, D) of any small integer or float dtype, converted to F first; index (m,) int64;
    shift, scale (D,) F. Raises IndexError for an index outside 0..N-1.
    """
    _check_index(index, len(source))
    out[:] = (source[index].astype(out.dtype) - shift) * scale


def gather_csr(
    out: Array, indptr: Array, indices: Array, values: Array, index: Array, shift: Array, scale: Array
) -> None:
    """out[i] = (row index[i] of a sparse matrix - shift) * scale in F, absent entries being 0; overwrites
    out.

    out (m, D) F; indptr (N + 1,) int64; indices (nnz,) int32 in 0..D-1; values (nnz,) float32 or float64;
    index (m,) int64; shift, scale (D,) F. Raises IndexError for an index outside 0..N-1, or for a row whose
    entries lie outside the arrays. Where a row names a column twice the later value counts.
    """
    _check_index(index, len(indptr) - 1)
    for row, i in zip(out, index, strict=True):
        start, stop = indptr[i], indptr[i + 1]
        columns = indices[start:stop]
        if start < 0 or stop < start or stop > len(indices) or ((columns < 0) | (columns >= len(row))).any():
            raise IndexError("gather_csr: a row has entries outside the arrays or columns outside 0..D-1")
        row[:] = 0
        row[columns] = values[start:stop]
        row[:] = (row - shift) * scale


def gather_rows(out: Array, table: Array, index: Array) -> None:
    """out[i] = table[index[i]]; overwrites out.

    out (m, W), table (N, W) of one dtype: float32, float64 or int64; index (m,) int64. Raises IndexError for an index
    outside 0..N-1; out then holds anything.
    """
    _check_index(index, len(table))
    out[:] = table[index]


def gather_leading(out: Array, table: Array, index: Array) -> None:
    """out[i] = the first W columns of table[index[i]]; overwrites out.

    out (m, W), table (N, P) of one dtype: float32, float64 or int64; index (m,) int64. Raises ValueError where P is
    less than W, IndexError for an index outside 0..N-1; out then holds anything.
    """
    if table.shape[1] < out.shape[1]:
        raise ValueError("gather_leading: the table's rows are narrower than out's")
    _check_index(index, len(table))
    out[:] = table[index, : out.shape[1]]


def scatter_rows(table: Array, rows: Array, index: Array) -> None:
    """table[index[i]] = rows[i], the last i counting where an index repeats; updates table.

    table (N, W), rows (m, W) of one dtype: float32, float64 or int64; index (m,) int64. Raises IndexError for an index
    outside 0..N-1; table is then left as it was.
    """
    _check_index(index, len(table))
    for i, row in zip(index, rows, strict=True):
        table[i] = row


def scatter_add_rows(table: Array, rows: Array, index: Array) -> None:
    """table[index[i]] += rows[i], one i after the other; updates table.

    table (N, W), rows (m, W) of one dtype: float32, float64 or int64 (which wraps around); index (m,) int64. Raises
    IndexError for an index outside 0..N-1; table is then left as it was.
    """
    _check_index(index, len(table))
    np.add.at(table, index, rows)


def scatter_add_rows_fixed(table: Array, rows: Array, index: Array, scale: float) -> None:
    """table[index[i]] += rint(rows[i] * scale), the product and its rounding (half to even) in float64.

    table (N, W) int64 is updated; rows (m, W) F; index (m,) int64. The caller chooses scale so that nothing leaves
    int64. Raises IndexError for an index outside 0..N-1; table is then left as it was.
    """
    _check_index(index, len(table))
    np.add.at(table, index, np.rint(rows.astype(np.float64) * scale).astype(np.int64))


def localize(keys: Array, inverse: Array, x: Array, slots: Array) -> int:
    """The distinct keys of x in order of first occurrence; returns their count.

    keys (n,) int64: overwritten with the distinct keys, then zeros; inverse (n,) int32: overwritten so that
    keys[inverse] is x; x (n,) int32 or int64, n below 2**31, each 0..R-1. slots (R,) int32 is scratch, all -1 before
    and after. Raises IndexError for a key outside 0..R-1: keys and inverse then hold anything, slots are all -1.
    """
    _check_index(x, len(slots))
    distinct, first, position = np.unique(x, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    keys[:] = 0
    keys[: len(distinct)] = distinct[order]
    inverse[:] = rank[position]
    return len(distinct)


def unique(keys: Array, inverse: Array, x: Array) -> int:
    """The distinct keys of x, ascending; returns their count.

    keys (n,) int64: overwritten with the distinct keys, then zeros; inverse (n,) int32: overwritten so that
    keys[inverse] is x; x (n,) int64, any values, n below 2**31.
    """
    distinct, position = np.unique(x, return_inverse=True)
    keys[:] = 0
    keys[: len(distinct)] = distinct
    inverse[:] = position
    return len(distinct)


def _check_index(index: Array, rows: int) -> None:
    if ((index < 0) | (index >= rows)).any():
        raise IndexError("rows: an index is outside 0..N-1")
