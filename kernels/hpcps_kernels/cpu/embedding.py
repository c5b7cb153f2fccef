"""Bags: sums and means of a table's rows, and their gradients; bound by the rows' way from cache or memory."""

from __future__ import annotations

from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.cpu._table_rows import add_rows, spread_row
from hpcps_kernels.interface import Array
from hpcps_kernels.spec import BAG_MODES

MEAN = BAG_MODES.index("mean")


@part
def check_entries(indptr: Array, indices: Array, rows: int) -> None:
    """Raise IndexError unless every sample has its entries inside the arrays and every entry a row below `rows`."""
    wrong = False
    for i in range(indptr.shape[0] - 1):
        wrong |= (indptr[i] < 0) | (indptr[i + 1] < indptr[i]) | (indptr[i + 1] > indices.shape[0])
    for e in range(indices.shape[0]):
        wrong |= (indices[e] < 0) | (indices[e] >= rows)
    if wrong:
        raise IndexError("a sample has entries outside the arrays, or one outside the rows of the table")


@kernel
def bag_forward(out: Array, indptr: Array, indices: Array, values: Array, table: Array, mode: int) -> None:
    check_entries(indptr, indices, table.shape[0])
    for i in range(out.shape[0]):
        start, stop = indptr[i], indptr[i + 1]
        add_rows(out, table, indices, values, i, start, stop)
        if mode == MEAN and stop > start:
            into, share = out[i], _share(out, start, stop)
            for d in range(into.shape[0]):
                into[d] *= share


@kernel
def bag_backward(
    table_gradient: Array, indptr: Array, indices: Array, values: Array, gradient: Array, mode: int
) -> None:
    check_entries(indptr, indices, table_gradient.shape[0])
    table_gradient[:] = 0
    for i in range(gradient.shape[0]):
        start, stop = indptr[i], indptr[i + 1]
        factor = _share(gradient, start, stop) if mode == MEAN else gradient.dtype.type(1)
        spread_row(table_gradient, gradient, indices, values, i, start, stop, factor)


@part
def _share(like: Array, start: int, stop: int) -> float:
    share: float = like.dtype.type(1) / like.dtype.type(max(stop - start, 1))
    return share
