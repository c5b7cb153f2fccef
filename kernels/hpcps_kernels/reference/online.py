"""Linear models that learn from sparse samples one after the other, in the order of `index`.

Each sample is scored with the parameters as they are, then they take a step; what is returned is the progressive loss:
the sum of the losses that the samples had before their steps, a held-out loss where `index` visits each sample once.

D features; F is float32 or float64, the same for all arrays that are not said to be of another dtype. Samples as in
`sparse`, with values (nnz,) float32 or float64, or empty; labels (n,) F; index (m,) int64, in which samples may be left
out or come again. A step touches the features of its sample only, and so does l2: a feature decays when it is seen, not
in between. The entries of a sample step one after the other. The bias is not regularised. Losses, labels and delta are
those of `loss`.

All raise IndexError for an index outside 0..n-1, or a row whose entries lie outside the arrays or columns outside
0..D-1, and ValueError for a label that the loss does not take; the samples before that one may have been learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hpcps_kernels.interface import Array
from hpcps_kernels.reference.loss import point_residual


def online_sgd(
    weight: Array,
    bias: Array,
    indptr: Array,
    indices: Array,
    values: Array,
    labels: Array,
    index: Array,
    loss: int,
    delta: float,
    learning_rate: float,
    l2: float,
) -> float:
    """w -= learning_rate (r x + l2 w) for the residual r of the sample's loss (Bottou 2012).

    weight (D,); bias (1,).
    """
    to, total = weight.dtype.type, 0.0
    rate, keep = to(learning_rate), to(1 - learning_rate * l2)
    for columns, x, label in _samples(indptr, indices, values, labels, index, len(weight), to):
        each, r = _residual(x @ weight[columns] + bias[0], label, loss, delta)
        total += each
        for d, value in zip(columns, x, strict=True):
            weight[d] = keep * weight[d] - rate * r * value
        bias[0] -= rate * r
    return total


def online_adagrad(
    state: Array,
    bias: Array,
    indptr: Array,
    indices: Array,
    values: Array,
    labels: Array,
    index: Array,
    loss: int,
    delta: float,
    learning_rate: float,
    epsilon: float,
    l2: float,
) -> float:
    """g = r x + l2 w; a += g^2; w -= learning_rate g / (sqrt(a) + epsilon) (Duchi et al. 2011).

    state (D, 2) and bias (2,) hold pairs of weight w and accumulator a. Where g is 0 nothing changes.
    """
    to, total = state.dtype.type, 0.0
    rate, floor, decay = to(learning_rate), to(epsilon), to(l2)

    def step(pair: Array, g: Any) -> None:
        pair[1] += g * g
        if g != 0:
            pair[0] -= rate * g / (np.sqrt(pair[1]) + floor)

    for columns, x, label in _samples(indptr, indices, values, labels, index, len(state), to):
        each, r = _residual(x @ state[columns, 0] + bias[0], label, loss, delta)
        total += each
        for d, value in zip(columns, x, strict=True):
            step(state[d], r * value + decay * state[d, 0])
        step(bias, r)
    return total


def online_ftrl(
    state: Array,
    bias: Array,
    indptr: Array,
    indices: Array,
    values: Array,
    labels: Array,
    index: Array,
    loss: int,
    delta: float,
    alpha: float,
    beta: float,
    l1: float,
    l2: float,
) -> float:
    """FTRL-proximal with a learning rate a coordinate (McMahan et al. 2013, algorithm 1).

    state (D, 2) and bias (2,) hold pairs z, n. The weight is 0 where abs(z) <= l1, else
    (sign(z) l1 - z) / ((beta + sqrt(n)) / alpha + l2), derived whenever it is read. For g = r x:
    s = (sqrt(n + g^2) - sqrt(n)) / alpha; z += g - s w; n += g^2.
    """
    to, total = state.dtype.type, 0.0
    steepness = to(1 / alpha)

    def weights(pairs: Array, l1: float, l2: float) -> Array:
        found = np.empty(len(pairs), pairs.dtype)
        online_ftrl_weights(found, pairs, alpha, beta, l1, l2)
        return found

    def step(pair: Array, w: Any, g: Any) -> None:
        """A step of weight w, as it was before the sample."""
        root = np.sqrt(pair[1])
        pair[1] += g * g
        pair[0] += g - (np.sqrt(pair[1]) - root) * steepness * w

    for columns, x, label in _samples(indptr, indices, values, labels, index, len(state), to):
        w, bias_weight = weights(state[columns], l1, l2), weights(bias[None], 0, 0)
        each, r = _residual(x @ w + bias_weight[0], label, loss, delta)
        total += each
        for d, before, value in zip(columns, w, x, strict=True):
            step(state[d], before, r * value)
        step(bias, bias_weight[0], r)
    return total


def online_ftrl_weights(weight: Array, state: Array, alpha: float, beta: float, l1: float, l2: float) -> None:
    """The weights (D,) that `online_ftrl` derives of its state (D, 2)."""
    to = state.dtype.type
    z, n = state.T
    slope = (to(beta) + np.sqrt(n)) * to(1 / alpha) + to(l2)
    weight[:] = 0
    np.divide(np.copysign(to(l1), z) - z, slope, out=weight, where=~(np.abs(z) <= to(l1)))


def _samples(
    indptr: Array, indices: Array, values: Array, labels: Array, index: Array, features: int, to: Any
) -> Iterator[tuple[Array, Array, Array]]:
    """Columns, values and label of each sample in turn."""
    if ((index < 0) | (index >= len(labels))).any():
        raise IndexError("online: an index is outside 0..n-1")
    starts, stops = indptr[index], indptr[index + 1]
    if ((starts < 0) | (stops < starts) | (stops > len(indices))).any():
        raise IndexError("csr: a row has entries outside the arrays or columns outside 0..D-1")
    for i, start, stop in zip(index, starts, stops, strict=True):
        columns = indices[start:stop]
        if ((columns < 0) | (columns >= features)).any():
            raise IndexError("csr: a row has entries outside the arrays or columns outside 0..D-1")
        yield columns, values[start:stop].astype(to) if len(values) else np.ones(stop - start, to), labels[i : i + 1]


def _residual(score: Any, label: Array, loss: int, delta: float) -> tuple[float, Any]:
    """Loss and residual of one sample."""
    scores = np.array([score], label.dtype)
    each = point_residual(scores, label, label[:0], loss, delta)
    return each, scores[0]
