"""Bags of a table's rows: weighted sums or means, and their gradients."""

from __future__ import annotations

from typing import Any

from hpcps_kernels.gpu._groups import group_entries
from hpcps_kernels.gpu._launch import FLOATS, THREADS, Launch, strides
from hpcps_kernels.gpu._told import Told
from hpcps_kernels.gpu.reduce import lanes_for
from hpcps_kernels.spec import BAG_MODES

MALFORMED = "a sample has entries outside the arrays, or one outside the rows of the table"
WARPS = THREADS // 32  # of a block
MEAN = BAG_MODES.index("mean")

FORWARD = Launch(
    "embedding",
    "forward",
    "T *, const i64 *, i64, const i32 *, const T *, i64, const T *, i64, i64, i64, const double *",
    strides(WARPS),
    {"T": FLOATS},
)
BACKWARD = Launch(
    "embedding",
    "backward",
    "T *, i64, const i64 *, const T *, i64, const T *, i64, i64, const i64 *, const i64 *, const i64 *, const i64 *, "
    "const i64 *, i64, i64, const double *",
    strides(WARPS),
    {"T": FLOATS},
)


def bag_forward(out: Any, indptr: Any, indices: Any, values: Any, table: Any, mode: int) -> None:
    told, (n, width) = Told(), out.shape
    told.entries(indptr, indices, len(table), all_entries=True)
    FORWARD(
        n, out, indptr, n, indices, values, int(values.size > 0), table, width, int(mode == MEAN), lanes_for(width),
        told.array, T=out.dtype,
    )  # fmt: skip
    told.sum(IndexError(MALFORMED))


def bag_backward(table_gradient: Any, indptr: Any, indices: Any, values: Any, gradient: Any, mode: int) -> None:
    told, (rows, width), nnz = Told(), table_gradient.shape, indices.size
    told.entries(indptr, indices, rows, all_entries=True)
    told.clear(table_gradient)
    samples, keys, groups = group_entries(told, indptr, indices, rows)
    BACKWARD(
        nnz, table_gradient, rows, indptr, values, int(values.size > 0), gradient, width, int(mode == MEAN), samples,
        keys, groups.order, groups.starts, groups.numbers, nnz, lanes_for(width), told.array, T=gradient.dtype,
    )  # fmt: skip
    told.sum(IndexError(MALFORMED))
