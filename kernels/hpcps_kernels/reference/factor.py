"""Models whose features meet in pairs: factorization machines and matrix factorisation.

n samples, nnz entries, D features, U users, I items; column 0 of a table's row is its linear weight, columns 1..R-1
its factors, R >= 1. F is float32 or float64, the same for all float arrays of one call. Losses, labels, weights and
delta are those of `loss.point_residual`; a nan or inf reaches the loss.
"""

from __future__ import annotations

import numpy as np

from hpcps_kernels.interface import Array
from hpcps_kernels.reference.embedding import bag_forward, check_entries
from hpcps_kernels.reference.loss import point_residual
from hpcps_kernels.spec import BAG_MODES

SUM = BAG_MODES.index("sum")


def fm_scores(scores: Array, indptr: Array, indices: Array, values: Array, table: Array, bias: Array) -> None:
    """The scores of a factorization machine of second order.

    scores (n,) F; indptr (n + 1,) int64; indices (nnz,) int32; values (nnz,) F, or empty for ones; table (D, R) F;
    bias (1,) F. score = bias + sum_j w_j x_j + sum_f ((sum_j v_jf x_j)^2 - sum_j v_jf^2 x_j^2) / 2 with a row of the
    table as (w_j, v_j1, v_j2, ...) (Rendle 2010, lemma 3.1). Raises IndexError for entries outside the arrays or
    features outside 0..D-1, ValueError for a table without columns; nothing is written then.
    """
    _check_columns(table)
    scores[:] = _fm(indptr, indices, values, table, bias)[0]


def fm_loss_gradient(
    table_gradient: Array,
    bias_gradient: Array,
    indptr: Array,
    indices: Array,
    values: Array,
    labels: Array,
    sample_weight: Array,
    table: Array,
    bias: Array,
    loss: int,
    delta: float,
) -> float:
    """The weighted loss of fm_scores, summed; overwrites table_gradient (D, R) F and bias_gradient (1,) F.

    labels (n,) F; sample_weight (n,) F or empty; the rest, and what is raised, as in fm_scores and loss.point_residual.
    d score / d w_j = x_j, d score / d v_jf = x_j (sum_i v_if x_i - v_jf x_j) (Rendle 2010, eq. 4).
    """
    _check_columns(table)
    residual, sums = _fm(indptr, indices, values, table, bias)
    total = point_residual(residual, labels, sample_weight, loss, delta)
    sample = np.repeat(np.arange(len(labels)), np.diff(indptr))
    entries = _owned(indptr)
    x = _values(values, indices, table)[entries]
    rows = indices[entries]
    by_entry = sums[sample] - x[:, None] * table[rows]
    by_entry[:, 0] = 1
    table_gradient[:] = 0
    np.add.at(table_gradient, rows, (residual[sample] * x)[:, None] * by_entry)
    bias_gradient[0] = residual.sum()
    return total


def mf_scores(scores: Array, users: Array, items: Array, user: Array, item: Array, bias: Array) -> None:
    """score = bias + user[u, 0] + item[i, 0] + user[u, 1:] . item[i, 1:] (Koren, Bell and Volinsky 2009, eq. 4).

    scores (n,) F; users, items (n,) int32; user (U, R), item (I, R), bias (1,) F. Raises IndexError for a user or item
    outside its table, ValueError for a table without columns; nothing is written then.
    """
    _check_columns(user)
    _check_rows(users, user)
    _check_rows(items, item)
    a, b = user[users], item[items]
    scores[:] = bias + a[:, 0] + b[:, 0] + (a[:, 1:] * b[:, 1:]).sum(axis=1)


def mf_loss_gradient(
    user_gradient: Array,
    item_gradient: Array,
    bias_gradient: Array,
    users: Array,
    items: Array,
    labels: Array,
    sample_weight: Array,
    user: Array,
    item: Array,
    bias: Array,
    loss: int,
    delta: float,
) -> float:
    """The weighted loss of mf_scores, summed; overwrites user_gradient (U, R), item_gradient (I, R) and
    bias_gradient (1,).

    labels (n,) F; sample_weight (n,) F or empty; the rest, and what is raised, as in mf_scores and loss.point_residual.
    """
    residual = np.empty_like(labels)
    mf_scores(residual, users, items, user, item, bias)
    total = point_residual(residual, labels, sample_weight, loss, delta)
    for gradient, rows, others in ((user_gradient, users, item[items]), (item_gradient, items, user[users])):
        others[:, 0] = 1
        gradient[:] = 0
        np.add.at(gradient, rows, residual[:, None] * others)
    bias_gradient[0] = residual.sum()
    return total


def _fm(indptr: Array, indices: Array, values: Array, table: Array, bias: Array) -> tuple[Array, Array]:
    """Scores (n,), and the sums of v_jf x_j of each sample (n, R)."""
    check_entries(indptr, indices, len(table))
    sums = np.empty((len(indptr) - 1, table.shape[1]), table.dtype)
    squares = np.empty_like(sums)
    bag_forward(sums, indptr, indices, values, table, SUM)
    bag_forward(squares, indptr, indices, values**2, table**2, SUM)
    interactions = (sums[:, 1:] ** 2 - squares[:, 1:]).sum(axis=1)
    return bias + sums[:, 0] + interactions / 2, sums


def _owned(indptr: Array) -> Array:
    """The numbers of the entries of all samples, in their order."""
    return np.concatenate([np.arange(0), *map(np.arange, indptr[:-1], indptr[1:])])


def _values(values: Array, indices: Array, like: Array) -> Array:
    return values if len(values) else np.ones(len(indices), like.dtype)


def _check_columns(table: Array) -> None:
    if table.shape[1] < 1:
        raise ValueError("a row of a table holds its linear weight at least")


def _check_rows(indices: Array, table: Array) -> None:
    if (indices < 0).any() or (indices >= len(table)).any():
        raise IndexError("a user or item is outside the rows of its table")
