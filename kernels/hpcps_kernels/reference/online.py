"""Linear models that learn from sparse samples one after the other, in the order of `index`.

Each sample is scored with the parameters as they are, then they take a step; what is returned is the progressive loss:
the sum of the losses that the samples had before their steps, a held-out loss where `index` visits each sample once.

D features; F is float32 or float64, the same for all arrays that are not said to be of another dtype. Samples as in
`sparse`, with values (nnz,) float32 or float64, or empty; labels (n,) F; index (m,) int64, in which samples may be left
out or come again. A step touches the features of its sample only, and so does l2: a feature decays when it is seen, not
in between. Where a sample names a column twice, each entry steps from the state before the sample, and the steps add
up. The bias is not regularised. Losses, labels and delta are those of `loss`.

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
    rate, decay = to(learning_rate), to(l2)
    for columns, x, label in _samples(indptr, indices, values, labels, index, len(weight), to):
        w = weight[columns]
        each, r = _residual(x @ w + bias[0], label, loss, delta)
        total += each
        np.subtract.at(weight, columns, rate * (r * x + decay * w))
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

    def step(pairs: Array, g: Array) -> Array:
        """What is added to pairs (k, 2) for gradients g (k,)."""
        some = g != 0
        root = np.sqrt(pairs[:, 1] + g * g)
        return np.stack([np.divide(-rate * g, root + floor, out=g.copy(), where=some), g * g], axis=1)

    for columns, x, label in _samples(indptr, indices, values, labels, index, len(state), to):
        w = state[columns, 0]
        each, r = _residual(x @ w + bias[0], label, loss, delta)
        total += each
        np.add.at(state, columns, step(state[columns], r * x + decay * w))
        bias += step(bias[None], np.array([r]))[0]
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
    steepness, start = to(1 / alpha), to(beta)

    def weights(pairs: Array, l1: Any, l2: Any) -> Array:
        z, n = pairs.T
        slope = (start + np.sqrt(n)) * steepness + l2
        found: Array = np.divide(np.copysign(l1, z) - z, slope, out=np.zeros_like(z), where=~(np.abs(z) <= l1))
        return found

    def step(pairs: Array, w: Array, g: Array) -> Array:
        """What is added to pairs (k, 2) of weights w (k,) for gradients g (k,)."""
        n = pairs[:, 1]
        return np.stack([g - (np.sqrt(n + g * g) - np.sqrt(n)) * steepness * w, g * g], axis=1)

    for columns, x, label in _samples(indptr, indices, values, labels, index, len(state), to):
        w, bias_weight = weights(state[columns], to(l1), to(l2)), weights(bias[None], to(0), to(0))
        each, r = _residual(x @ w + bias_weight[0], label, loss, delta)
        total += each
        np.add.at(state, columns, step(state[columns], w, r * x))
        bias += step(bias[None], bias_weight, np.array([r]))[0]
    return total


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
