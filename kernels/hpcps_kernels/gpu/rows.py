"""Rows picked out of a data set or a table by number, and the numbers of keys."""

from __future__ import annotations

from typing import Any

from hpcps_kernels.gpu._groups import group
from hpcps_kernels.gpu._launch import FLOATS, THREADS, Launch, device, strides
from hpcps_kernels.gpu._told import Told

OUTSIDE = "rows: an index is outside 0..N-1"

_ELEMENTS, _WARPS, _WIDE = strides(THREADS), strides(THREADS // 32), strides(4 * THREADS)
_A, _I, _T = {"A": (*FLOATS, "i64")}, {"I": ("i32", "i64")}, {"T": FLOATS}
GATHER = Launch(
    "rows",
    "gather",
    "T *, const S *, const i64 *, i64, i64, const T *, const T *, const double *",
    _ELEMENTS,
    {"T": FLOATS, "S": (*FLOATS, "u8", "i8", "i16", "i32", "i64")},
)
GATHER_CSR = Launch(
    "rows",
    "gather_csr",
    "T *, const i64 *, const i32 *, const V *, i64, i64, const i64 *, i64, i64, const T *, const T *, double *",
    _WARPS,
    {"T": FLOATS, "V": FLOATS},
)
GATHER_ROWS = Launch("rows", "gather_rows", "A *, const A *, const i64 *, i64, i64, i64, const double *", _WIDE, _A)
_SCATTER = "A *, const A *, i64, const i64 *, const i64 *, const i64 *, const i64 *, i64, const double *"
SCATTER_ROWS = Launch("rows", "scatter_rows", _SCATTER, _ELEMENTS, _A)
SCATTER_ADD_ROWS = Launch("rows", "scatter_add_rows", _SCATTER, _ELEMENTS, _A)
SCATTER_ADD_ROWS_FIXED = Launch(
    "rows",
    "scatter_add_rows_fixed",
    "i64 *, const T *, i64, const i64 *, i64, double, const double *",
    _ELEMENTS,
    _T,
)
MARK_FIRST = Launch("rows", "mark_first", "i32 *, const I *, i64, const double *", _ELEMENTS, _I)
IS_FIRST = Launch("rows", "is_first", "i64 *, const i32 *, const I *, i64, const double *", _ELEMENTS, _I)
LOCALIZE = Launch(
    "rows", "localize", "i64 *, i32 *, const i32 *, const I *, const i64 *, const i64 *, i64, double *", _ELEMENTS, _I
)
FORGET = Launch("rows", "forget", "i32 *, const I *, i64, const double *", _ELEMENTS, _I)
UNIQUE = Launch(
    "rows", "unique", "i64 *, i32 *, const i64 *, const i64 *, const i64 *, const i64 *, i64, double *", _ELEMENTS
)


def gather(out: Any, source: Any, index: Any, shift: Any, scale: Any) -> None:
    told = _looked_over(index, len(source))
    m, width = out.shape
    GATHER(out.size, out, source, index, m, width, shift, scale, told.array, T=out.dtype, S=source.dtype)
    told.sum(IndexError(OUTSIDE))


def gather_csr(out: Any, indptr: Any, indices: Any, values: Any, index: Any, shift: Any, scale: Any) -> None:
    told, rows, (m, width) = Told(), indptr.size - 1, out.shape
    GATHER_CSR(
        m, out, indptr, indices, values, rows, indices.size, index, m, width, shift, scale, told.array,
        T=out.dtype, V=values.dtype,
    )  # fmt: skip
    told.sum(
        IndexError(
            "gather_csr: an index is outside 0..N-1, or a row has entries outside the arrays or columns outside 0..D-1"
        )
    )


def gather_rows(out: Any, table: Any, index: Any) -> None:
    told = _looked_over(index, len(table))
    (m, width), pitch = out.shape, table.shape[1]
    GATHER_ROWS(out.size, out, table, index, m, width, pitch, told.array, A=out.dtype)
    told.sum(IndexError(OUTSIDE))


def gather_leading(out: Any, table: Any, index: Any) -> None:
    if table.shape[1] < out.shape[1]:
        raise ValueError("gather_leading: the table's rows are narrower than out's")
    gather_rows(out, table, index)


def scatter_rows(table: Any, rows: Any, index: Any) -> None:
    _scatter(SCATTER_ROWS, table, rows, index)


def scatter_add_rows(table: Any, rows: Any, index: Any) -> None:
    _scatter(SCATTER_ADD_ROWS, table, rows, index)


def scatter_add_rows_fixed(table: Any, rows: Any, index: Any, scale: float) -> None:
    told = _looked_over(index, len(table))
    m, width = rows.shape
    SCATTER_ADD_ROWS_FIXED(rows.size, table, rows, width, index, m, scale, told.array, T=rows.dtype)
    told.sum(IndexError(OUTSIDE))


def localize(keys: Any, inverse: Any, x: Any, slots: Any) -> int:
    here, told, n, dtype = device(), _looked_over(x, slots.size), x.size, x.dtype
    first = here.empty(n, "int64")
    MARK_FIRST(n, slots, x, n, told.array, I=dtype)
    IS_FIRST(n, first, slots, x, n, told.array, I=dtype)
    LOCALIZE(n, keys, inverse, slots, x, first, here.running_sum(first), n, told.array, I=dtype)
    FORGET(n, slots, x, n, told.array, I=dtype)
    return int(told.sum(IndexError(OUTSIDE)))


def unique(keys: Any, inverse: Any, x: Any) -> int:
    told, n = Told(), x.size
    order, _, numbers, heads = group(x)
    UNIQUE(n, keys, inverse, x, order, heads, numbers, n, told.array)
    return int(told.sum(AssertionError()))


def _looked_over(index: Any, rows: int) -> Told:
    told = Told()
    told.numbers_below(index, rows)
    return told


def _scatter(launch: Launch, table: Any, rows: Any, index: Any) -> None:
    told = _looked_over(index, len(table))
    m, width = rows.shape
    order, starts, numbers, _ = group(index)
    launch(rows.size, table, rows, width, index, order, starts, numbers, m, told.array, A=rows.dtype)
    told.sum(IndexError(OUTSIDE))
