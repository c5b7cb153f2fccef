"""Factorization machines and matrix factorisation: samples go through in chunks, whose scores become residuals.

Bound by the rows' way from the second-level cache, or from memory where a table does not fit.
"""

from __future__ import annotations

import numpy as np

from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.cpu._table_rows import pairs, pairs_back, product, product_back
from hpcps_kernels.cpu.embedding import check_entries
from hpcps_kernels.cpu.loss import CHUNK, check_delta, loss_sum, point_residuals
from hpcps_kernels.interface import Array


@kernel
def fm_scores(scores: Array, indptr: Array, indices: Array, values: Array, table: Array, bias: Array) -> None:
    _check_columns(table)
    check_entries(indptr, indices, table.shape[0])
    sums = np.empty((1, table.shape[1]), table.dtype)
    for i in range(scores.shape[0]):
        scores[i] = _fm_score(sums, 0, indptr, indices, values, table, bias, i)


@kernel
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
    _check_columns(table)
    check_delta(loss, delta)
    check_entries(indptr, indices, table.shape[0])
    table_gradient[:] = 0
    bias_gradient[:] = 0
    sums, residual = np.empty((CHUNK, table.shape[1]), table.dtype), np.empty(CHUNK, table.dtype)
    losses = np.zeros((2, CHUNK))
    for first in range(0, labels.shape[0], CHUNK):
        stop = min(first + CHUNK, labels.shape[0])
        chunk = residual[: stop - first]
        for i in range(first, stop):
            chunk[i - first] = _fm_score(sums, i - first, indptr, indices, values, table, bias, i)
        point_residuals(chunk, labels[first:stop], sample_weight[first:stop], loss, delta, losses)
        for i in range(first, stop):
            factor = chunk[i - first]
            bias_gradient[0] += factor
            for e in range(indptr[i], indptr[i + 1]):
                x = values[e] if values.shape[0] > 0 else table.dtype.type(1)
                table_gradient[indices[e], 0] += factor * x
            pairs_back(table_gradient, sums, table, indices, values, i - first, indptr[i], indptr[i + 1], factor)
    return loss_sum(losses)


@part
def _fm_score(
    sums: Array, at: int, indptr: Array, indices: Array, values: Array, table: Array, bias: Array, i: int
) -> float:
    """The score of sample i; sums[at] are those of its factors."""
    score = bias[0]
    for e in range(indptr[i], indptr[i + 1]):
        x = values[e] if values.shape[0] > 0 else table.dtype.type(1)
        score += x * table[indices[e], 0]
    interactions = pairs(sums, table, indices, values, at, indptr[i], indptr[i + 1])
    found: float = score + table.dtype.type(0.5) * interactions
    return found


@kernel
def mf_scores(scores: Array, users: Array, items: Array, user: Array, item: Array, bias: Array) -> None:
    _check_columns(user)
    _check_rows(users, user)
    _check_rows(items, item)
    for i in range(scores.shape[0]):
        scores[i] = _mf_score(user, item, bias, users[i], items[i])


@kernel
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
    _check_columns(user)
    check_delta(loss, delta)
    _check_rows(users, user)
    _check_rows(items, item)
    user_gradient[:] = 0
    item_gradient[:] = 0
    bias_gradient[:] = 0
    residual, losses = np.empty(CHUNK, user.dtype), np.zeros((2, CHUNK))
    for first in range(0, labels.shape[0], CHUNK):
        stop = min(first + CHUNK, labels.shape[0])
        chunk = residual[: stop - first]
        for i in range(first, stop):
            chunk[i - first] = _mf_score(user, item, bias, users[i], items[i])
        point_residuals(chunk, labels[first:stop], sample_weight[first:stop], loss, delta, losses)
        for i in range(first, stop):
            u, v, factor = users[i], items[i], chunk[i - first]
            bias_gradient[0] += factor
            user_gradient[u, 0] += factor
            item_gradient[v, 0] += factor
            product_back(user_gradient, item_gradient, user, item, u, v, factor)
    return loss_sum(losses)


@part
def _mf_score(user: Array, item: Array, bias: Array, u: int, v: int) -> float:
    score: float = (bias[0] + (user[u, 0] + item[v, 0])) + product(user, item, u, v)
    return score


@part
def _check_columns(table: Array) -> None:
    if table.shape[1] < 1:
        raise ValueError("a row of a table holds its linear weight at least")


@part
def _check_rows(indices: Array, table: Array) -> None:
    wrong = False
    for i in range(indices.shape[0]):
        wrong |= (indices[i] < 0) | (indices[i] >= table.shape[0])
    if wrong:
        raise IndexError("a user or item is outside the rows of its table")
