"""Models whose features meet in pairs: factorization machines and matrix factorisation."""

from __future__ import annotations

from typing import Any

from hpcps_kernels.gpu._groups import group, group_entries
from hpcps_kernels.gpu._launch import FLOATS, THREADS, Launch, device, strides
from hpcps_kernels.gpu._told import Told
from hpcps_kernels.gpu.loss import check_delta, label_error, point_into
from hpcps_kernels.gpu.reduce import lanes_for, sum_columns

MALFORMED = "a sample has entries outside the arrays, or one outside the rows of the table"
OUTSIDE = "a user or item is outside the rows of its table"

_T, _WARPS = {"T": FLOATS}, strides(THREADS // 32)
FM_SCORES = Launch(
    "factor",
    "fm_scores",
    "T *, T *, i64, const i64 *, i64, const i32 *, const T *, i64, const T *, i64, const T *, i64, const double *",
    _WARPS,
    _T,
)
FM_GRADIENT = Launch(
    "factor",
    "fm_gradient",
    "T *, const T *, const T *, const i32 *, const T *, i64, const T *, i64, i64, const i64 *, const i64 *, "
    "const i64 *, const i64 *, const i64 *, i64, i64, const double *",
    _WARPS,
    _T,
)
MF_SCORES = Launch(
    "factor",
    "mf_scores",
    "T *, const i32 *, const i32 *, i64, const T *, const T *, i64, const T *, i64, const double *",
    _WARPS,
    _T,
)
MF_GRADIENT = Launch(
    "factor",
    "mf_gradient",
    "T *, const T *, const i32 *, const i32 *, const T *, i64, const i64 *, const i64 *, const i64 *, i64, i64, "
    "const double *",
    _WARPS,
    _T,
)


def fm_scores(scores: Any, indptr: Any, indices: Any, values: Any, table: Any, bias: Any) -> None:
    _check_columns(table)
    told = Told()
    _fm_scores(told, scores, device().empty(0, scores.dtype), indptr, indices, values, table, bias)
    told.sum(IndexError(MALFORMED))


def fm_loss_gradient(
    table_gradient: Any,
    bias_gradient: Any,
    indptr: Any,
    indices: Any,
    values: Any,
    labels: Any,
    sample_weight: Any,
    table: Any,
    bias: Any,
    loss: int,
    delta: float,
) -> float:
    _check_columns(table)
    check_delta(loss, delta)
    (entries, losses, both), (columns, width), nnz = Told.pair(), table.shape, indices.size
    residual, sums = _residual(labels), device().empty((labels.size, width), table.dtype)
    _fm_scores(entries, residual, sums, indptr, indices, values, table, bias)
    point_into(losses, residual, labels, sample_weight, loss, delta, residuals=True)
    entries.clear(table_gradient)
    samples, keys, groups = group_entries(entries, indptr, indices, columns)
    FM_GRADIENT(
        nnz, table_gradient, residual, sums, indices, values, int(values.size > 0), table, columns, width, samples,
        keys, groups.order, groups.starts, groups.numbers, nnz, lanes_for(width), entries.array, T=table.dtype,
    )  # fmt: skip
    sum_columns(bias_gradient, residual)
    return Told.sum_of_pair(both, IndexError(MALFORMED), label_error(loss))


def mf_scores(scores: Any, users: Any, items: Any, user: Any, item: Any, bias: Any) -> None:
    told = Told()
    _mf_scores(told, scores, users, items, user, item, bias)
    told.sum(IndexError(OUTSIDE))


def mf_loss_gradient(
    user_gradient: Any,
    item_gradient: Any,
    bias_gradient: Any,
    users: Any,
    items: Any,
    labels: Any,
    sample_weight: Any,
    user: Any,
    item: Any,
    bias: Any,
    loss: int,
    delta: float,
) -> float:
    check_delta(loss, delta)
    (pairs, losses, both), residual = Told.pair(), _residual(labels)
    _mf_scores(pairs, residual, users, items, user, item, bias)
    point_into(losses, residual, labels, sample_weight, loss, delta, residuals=True)
    _mf_gradient(pairs, user_gradient, residual, users, items, item)
    _mf_gradient(pairs, item_gradient, residual, items, users, user)
    sum_columns(bias_gradient, residual)
    return Told.sum_of_pair(both, IndexError(OUTSIDE), label_error(loss))


def _residual(labels: Any) -> Any:
    return device().empty((labels.size, 1), labels.dtype)


def _fm_scores(
    told: Told, scores: Any, sums: Any, indptr: Any, indices: Any, values: Any, table: Any, bias: Any
) -> None:
    """Also the sums of each sample, if there is room for them."""
    (rows, width), n = table.shape, indptr.size - 1
    told.entries(indptr, indices, rows, all_entries=True)
    FM_SCORES(
        n, scores, sums, int(sums.size > 0), indptr, n, indices, values, int(values.size > 0), table, width, bias,
        lanes_for(width), told.array, T=table.dtype,
    )  # fmt: skip


def _mf_scores(told: Told, scores: Any, users: Any, items: Any, user: Any, item: Any, bias: Any) -> None:
    _check_columns(user)
    told.numbers_below(users, len(user))
    told.numbers_below(items, len(item))
    n, width = users.size, user.shape[1]
    MF_SCORES(
        n, scores, users, items, n, user, item, width, bias, lanes_for(width), told.array, T=user.dtype
    )  # fmt: skip


def _mf_gradient(told: Told, gradient: Any, residual: Any, rows: Any, others: Any, other: Any) -> None:
    told.clear(gradient)
    n, width, groups = rows.size, gradient.shape[1], group(rows)
    MF_GRADIENT(
        n, gradient, residual, rows, others, other, width, groups.order, groups.starts, groups.numbers, n,
        lanes_for(width), told.array, T=gradient.dtype,
    )  # fmt: skip


def _check_columns(table: Any) -> None:
    if table.shape[1] < 1:
        raise ValueError("a row of a table holds its linear weight at least")
