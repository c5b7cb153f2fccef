"""Linear models of sparse samples: their scores, and the gradients of their losses as sums over the samples.

n samples, D features, K classes; F is float32 or float64, the same for all arrays that are not said to be of another
dtype. Sample i has the entries indptr[i] .. indptr[i + 1] - 1: indptr (n + 1,) int64, indices (nnz,) int32 in 0..D-1,
values (nnz,) or empty, where every value is 1. Entries of one column add up. Losses, labels, sample_weight and delta
are those of `loss`.

A batch touches few of a large model's features. Its caller numbers those anew, from 0, and hands over their rows alone:
then D is their number, and weight and weight_gradient, dense here, hold just the rows that the batch touches.
"""

from __future__ import annotations

import numpy as np

from hpcps_kernels.interface import Array
from hpcps_kernels.reference.loss import point_residual, softmax_residual


def csr_scores(scores: Array, indptr: Array, indices: Array, values: Array, weight: Array, bias: Array) -> None:
    """scores = samples @ weight + bias; scores (n,), weight (D,), bias (1,).

    Raises IndexError for a row whose entries lie outside the arrays, or columns outside 0..D-1.
    """
    rows, columns, factors = _entries(indptr, indices, values, weight)
    scores[:] = bias
    np.add.at(scores, rows, factors * weight[columns])


def csr_loss_gradient(
    weight_gradient: Array,
    bias_gradient: Array,
    indptr: Array,
    indices: Array,
    values: Array,
    labels: Array,
    sample_weight: Array,
    weight: Array,
    bias: Array,
    loss: int,
    delta: float,
) -> float:
    """The loss of samples @ weight + bias, weighted and summed; overwrites weight_gradient and bias_gradient.

    weight_gradient, weight (D,); bias_gradient, bias (1,); labels (n,) F; sample_weight (n,) or empty.
    Raises IndexError as `csr_scores` and ValueError as `point_residual` does.
    """
    residual = np.empty(len(labels), weight.dtype)
    csr_scores(residual, indptr, indices, values, weight, bias)
    total = point_residual(residual, labels, sample_weight, loss, delta)
    rows, columns, factors = _entries(indptr, indices, values, weight)
    weight_gradient[:] = 0
    np.add.at(weight_gradient, columns, factors * residual[rows])
    bias_gradient[0] = residual.sum()
    return total


def csr_softmax_scores(scores: Array, indptr: Array, indices: Array, values: Array, weight: Array, bias: Array) -> None:
    """scores = samples @ weight + bias, without softmax; scores (n, K), weight (D, K), bias (K,).

    The weights of a feature lie together, since a sample reads all of them. Raises IndexError as `csr_scores` does.
    """
    rows, columns, factors = _entries(indptr, indices, values, weight)
    scores[:] = bias
    np.add.at(scores, rows, factors[:, None] * weight[columns])


def csr_softmax_loss_gradient(
    weight_gradient: Array,
    bias_gradient: Array,
    indptr: Array,
    indices: Array,
    values: Array,
    labels: Array,
    sample_weight: Array,
    weight: Array,
    bias: Array,
) -> float:
    """Cross-entropy of softmax(samples @ weight + bias), weighted and summed; overwrites weight_gradient and
    bias_gradient.

    weight_gradient, weight (D, K); bias_gradient, bias (K,); labels (n,) int64 in 0..K-1; sample_weight (n,) or
    empty. Raises IndexError as `csr_scores` does, ValueError for a label out of range.
    """
    residual = np.empty((len(labels), len(bias)), weight.dtype)
    csr_softmax_scores(residual, indptr, indices, values, weight, bias)
    total = softmax_residual(residual, labels, sample_weight)
    rows, columns, factors = _entries(indptr, indices, values, weight)
    weight_gradient[:] = 0
    np.add.at(weight_gradient, columns, factors[:, None] * residual[rows])
    bias_gradient[:] = residual.sum(axis=0)
    return total


def csr_take(
    indptr_out: Array,
    indices_out: Array,
    values_out: Array,
    indptr: Array,
    indices: Array,
    values: Array,
    index: Array,
    scale: Array,
    columns: int,
) -> None:
    """The rows `index` one after the other, each value in F times its column's scale; overwrites the outputs.

    indptr_out (m + 1,) int64, from 0; indices_out (e,) int32 and values_out (e,) F, left out if not wanted, where e is
    the sum of the rows' lengths; indptr (N + 1,); values (nnz,) float32 or float64, left out if all are 1; index (m,)
    int64; scale (D,) F, left out if all are 1; columns, D.
    Raises IndexError for an index outside 0..N-1 and as `csr_scores` does, ValueError if e does not fit.
    """
    if ((index < 0) | (index >= len(indptr) - 1)).any():
        raise IndexError("csr_take: an index is outside 0..N-1")
    starts, stops = indptr[index], indptr[index + 1]
    if ((starts < 0) | (stops < starts) | (stops > len(indices))).any():
        raise _malformed()
    indptr_out[0] = 0
    indptr_out[1:] = np.cumsum(stops - starts)
    if indptr_out[-1] != len(indices_out):
        raise ValueError("csr_take: the rows picked have more or fewer entries than the outputs")
    entries = np.arange(len(indices_out)) - np.repeat(indptr_out[:-1] - starts, stops - starts)
    found = indices[entries]
    if ((found < 0) | (found >= columns)).any():
        raise _malformed()
    indices_out[:] = found
    if len(values_out):
        values_out[:] = values[entries] if len(values) else 1
        values_out *= scale[found] if len(scale) else 1


def _entries(indptr: Array, indices: Array, values: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Row, column and value of every entry."""
    start, stop, lengths = indptr[0], indptr[-1], np.diff(indptr)
    if start < 0 or (lengths < 0).any() or stop > len(indices):
        raise _malformed()
    columns = indices[start:stop]
    if ((columns < 0) | (columns >= len(weight))).any():
        raise _malformed()
    factors = values[start:stop] if len(values) else np.ones(len(columns), weight.dtype)
    return np.repeat(np.arange(len(lengths)), lengths), columns, factors


def _malformed() -> IndexError:
    return IndexError("csr: a row has entries outside the arrays or columns outside 0..D-1")
