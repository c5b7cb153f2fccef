"""Bags of a table's rows: weighted sums or means, and their gradients.

n bags, k rows of W numbers, nnz entries; bag i owns entries indptr[i] .. indptr[i + 1] - 1 of indices and values.
F is float32 or float64, the same for all float arrays of one call. `values` of length 0 stand for ones.
A nan or inf in a row, value or gradient goes wherever its product goes.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from hpcps_kernels.interface import Array
from hpcps_kernels.spec import BAG_MODES


def bag_forward(out: Array, indptr: Array, indices: Array, values: Array, table: Array, mode: int) -> None:
    """out[i] = the sum of values[e] * table[indices[e]] over the entries of bag i, divided by their number if the
    mode is "mean"; 0 for an empty bag.

    out (n, W) F; indptr (n + 1,) int64; indices (nnz,) int32; values (nnz,) F or empty; table (k, W) F; mode: a
    position in BAG_MODES. Raises IndexError for entries outside the arrays or rows outside 0..k-1; nothing is written
    then.
    """
    check_entries(indptr, indices, len(table))
    for i, entries in enumerate(_samples(indptr)):
        rows = table[indices[entries]]
        out[i] = (_values(values, entries, table)[:, None] * rows).sum(axis=0) / _divisor(entries, mode)


def bag_backward(
    table_gradient: Array, indptr: Array, indices: Array, values: Array, gradient: Array, mode: int
) -> None:
    """The gradient by the table, of `gradient` by what bag_forward gives.

    table_gradient (k, W) F is overwritten; gradient (n, W) F; the rest and what is raised as in bag_forward.
    """
    check_entries(indptr, indices, len(table_gradient))
    table_gradient[:] = 0
    for i, entries in enumerate(_samples(indptr)):
        factors = _values(values, entries, table_gradient) / table_gradient.dtype.type(_divisor(entries, mode))
        np.add.at(table_gradient, indices[entries], factors[:, None] * gradient[i])


def check_entries(indptr: Array, indices: Array, rows: int) -> None:
    """Raise IndexError unless every sample has its entries inside the arrays and every entry a row below `rows`."""
    outside = (indptr < 0).any() or (indptr > len(indices)).any() or (np.diff(indptr) < 0).any()
    if outside or (indices < 0).any() or (indices >= rows).any():
        raise IndexError("a sample has entries outside the arrays, or one outside the rows of the table")


def _samples(indptr: Array) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(indptr)]


def _values(values: Array, entries: slice, like: Array) -> Array:
    return values[entries] if len(values) else np.ones(entries.stop - entries.start, like.dtype)


def _divisor(entries: slice, mode: int) -> int:
    return max(int(entries.stop - entries.start), 1) if BAG_MODES[mode] == "mean" else 1
