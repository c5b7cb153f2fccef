"""Linear models that learn from sparse samples one after the other, in the order of `index`.

Each sample is scored with the parameters as they are, then they take a step; what is returned is the progressive loss:
the sum of the losses that the samples had before their steps, a held-out loss where `index` visits each sample once.

D features; F is float32 or float64, the same for all arrays that are not said to be of another dtype. Samples as in
`sparse`, with values (nnz,) float32 or float64, or empty; labels (n,) F; index (m,) int64, in which samples may be left
out or come again. A step touches the features of its sample only, and so does l2: a feature decays when it is seen, not
in between. Where a sample names a column twice, the entries are taken one after the other. The bias is not regularised.
Losses, labels and delta are those of `loss`.

All raise IndexError for an index outside 0..n-1, or a row whose entries lie outside the arrays or columns outside
0..D-1, and ValueError for a label that the loss does not take; the samples before that one may have been learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hpcps_kernels.interface import Array
from hpcps_kernels.reference.loss import point_residual

Samples = Iterator[tuple[list[tuple[int, Any]], Array]]


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
    for entries, label in _samples(indptr, indices, values, labels, index, len(weight), to):
        each, r = _residual(entries, label, lambda d: weight[d], bias[0], loss, delta)
        total += each
        for d, x in entries:
            weight[d] -= rate * (r * x + decay * weight[d])
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
        if g != 0:
            pair[1] += g * g
            pair[0] -= rate * g / (np.sqrt(pair[1]) + floor)

    for entries, label in _samples(indptr, indices, values, labels, index, len(state), to):
        each, r = _residual(entries, label, lambda d: state[d, 0], bias[0], loss, delta)
        total += each
        for d, x in entries:
            step(state[d], r * x + decay * state[d, 0])
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
    steepness, start, sparsity, decay, nothing = to(1 / alpha), to(beta), to(l1), to(l2), to(0)

    def weight(pair: Array, l1: Any, l2: Any) -> Any:
        z, n = pair
        if abs(z) <= l1:
            return nothing
        return (np.copysign(l1, z) - z) / ((start + np.sqrt(n)) * steepness + l2)

    def step(pair: Array, g: Any, w: Any) -> None:
        n = pair[1] + g * g
        pair[0] += g - (np.sqrt(n) - np.sqrt(pair[1])) * steepness * w
        pair[1] = n

    for entries, label in _samples(indptr, indices, values, labels, index, len(state), to):
        bias_weight = weight(bias, nothing, nothing)
        each, r = _residual(entries, label, lambda d: weight(state[d], sparsity, decay), bias_weight, loss, delta)
        total += each
        for d, x in entries:
            step(state[d], r * x, weight(state[d], sparsity, decay))
        step(bias, r, bias_weight)
    return total


def _samples(
    indptr: Array, indices: Array, values: Array, labels: Array, index: Array, features: int, to: Any
) -> Samples:
    """Entries (column, value) and label of each sample in turn."""
    if ((index < 0) | (index >= len(labels))).any():
        raise IndexError("online: an index is outside 0..n-1")
    for i in index:
        start, stop = indptr[i], indptr[i + 1]
        columns = indices[start:stop]
        if start < 0 or stop < start or stop > len(indices) or ((columns < 0) | (columns >= features)).any():
            raise IndexError("csr: a row has entries outside the arrays or columns outside 0..D-1")
        factors = values[start:stop].astype(to) if len(values) else np.ones(stop - start, to)
        yield list(zip(columns.tolist(), factors, strict=True)), labels[i : i + 1]


def _residual(
    entries: list[tuple[int, Any]], label: Array, weight: Callable[[int], Any], bias: Any, loss: int, delta: float
) -> tuple[float, Any]:
    """Loss and residual of one sample."""
    score = np.array([sum((weight(d) * x for d, x in entries), bias)], label.dtype)
    each = point_residual(score, label, label[:0], loss, delta)
    return each, score[0]
