"""Linear models that learn from sparse samples one after the other.

A step of some tens of entries is a few hundred cycles of arithmetic, and each entry reads and writes a place of a large
table. So three samples ahead are on their way: of the farthest its bounds, of the next its entries, of the nearest the
state of its features, a cache line a feature.
"""

from __future__ import annotations

import numpy as np

from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.cpu._prefetch import prefetch, prefetch_at
from hpcps_kernels.cpu.loss import check_delta, check_labels, point
from hpcps_kernels.cpu.sparse import outside, send_for_row
from hpcps_kernels.interface import Array

AHEAD = 4  # samples


@kernel
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
    to, total = weight.dtype.type, 0.0
    rate, decay = to(learning_rate), to(l2)
    table = weight.reshape(weight.shape[0], 1)
    _check(index, labels, loss, delta)
    for i in range(-AHEAD, index.shape[0]):
        _send_for(table, indptr, indices, values, labels, index, i, loss)
        if i >= 0:
            start, stop = indptr[index[i]], indptr[index[i] + 1]
            score = bias[0]
            for j in range(start, stop):
                score += _value(values, j, to) * weight[np.uint32(indices[j])]
            each, slope = point(np.float64(score), np.float64(labels[index[i]]), loss, delta)
            total += each
            r = to(slope)
            for j in range(start, stop):
                d = np.uint32(indices[j])
                weight[d] -= rate * (r * _value(values, j, to) + decay * weight[d])
            bias[0] -= rate * r
    return total


@kernel
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
    to, total = state.dtype.type, 0.0
    rate, floor, decay = to(learning_rate), to(epsilon), to(l2)
    _check(index, labels, loss, delta)
    for i in range(-AHEAD, index.shape[0]):
        _send_for(state, indptr, indices, values, labels, index, i, loss)
        if i >= 0:
            start, stop = indptr[index[i]], indptr[index[i] + 1]
            score = bias[0]
            for j in range(start, stop):
                score += _value(values, j, to) * state[np.uint32(indices[j]), 0]
            each, slope = point(np.float64(score), np.float64(labels[index[i]]), loss, delta)
            total += each
            r = to(slope)
            for j in range(start, stop):
                pair = state[np.uint32(indices[j])]
                _adagrad_step(pair, r * _value(values, j, to) + decay * pair[0], rate, floor)
            _adagrad_step(bias, r, rate, floor)
    return total


@part
def _adagrad_step(pair: Array, g: float, rate: float, floor: float) -> None:
    if g != 0:
        pair[1] += g * g
        pair[0] -= rate * g / (np.sqrt(pair[1]) + floor)


@kernel
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
    to, total = state.dtype.type, 0.0
    steepness, start_at, sparsity, decay, nothing = to(1 / alpha), to(beta), to(l1), to(l2), to(0)
    _check(index, labels, loss, delta)
    for i in range(-AHEAD, index.shape[0]):
        _send_for(state, indptr, indices, values, labels, index, i, loss)
        if i >= 0:
            start, stop = indptr[index[i]], indptr[index[i] + 1]
            score = _ftrl_weight(bias, np.sqrt(bias[1]), steepness, start_at, nothing, nothing)
            for j in range(start, stop):
                pair = state[np.uint32(indices[j])]
                weight = _ftrl_weight(pair, np.sqrt(pair[1]), steepness, start_at, sparsity, decay)
                score += _value(values, j, to) * weight
            each, slope = point(np.float64(score), np.float64(labels[index[i]]), loss, delta)
            total += each
            r = to(slope)
            for j in range(start, stop):
                g = r * _value(values, j, to)
                _ftrl_step(state[np.uint32(indices[j])], g, steepness, start_at, sparsity, decay)
            _ftrl_step(bias, r, steepness, start_at, nothing, nothing)
    return total


@part
def _ftrl_weight(pair: Array, root: float, steepness: float, beta: float, l1: float, l2: float) -> float:
    z = pair[0]
    weight = (np.copysign(l1, z) - z) / ((beta + root) * steepness + l2)
    return pair.dtype.type(0) if abs(z) <= l1 else weight


@part
def _ftrl_step(pair: Array, g: float, steepness: float, beta: float, l1: float, l2: float) -> None:
    root = np.sqrt(pair[1])
    weight = _ftrl_weight(pair, root, steepness, beta, l1, l2)
    n = pair[1] + g * g
    pair[0] += g - (np.sqrt(n) - root) * steepness * weight
    pair[1] = n


@part
def _value(values: Array, j: int, to: type) -> float:
    return to(values[j]) if values.shape[0] > 0 else to(1)


@part
def _check(index: Array, labels: Array, loss: int, delta: float) -> None:
    check_delta(loss, delta)
    wrong = False
    for i in range(index.shape[0]):
        wrong |= (index[i] < 0) | (index[i] >= labels.shape[0])
    if wrong:
        raise IndexError("online: an index is outside 0..n-1")


@part
def _send_for(
    table: Array, indptr: Array, indices: Array, values: Array, labels: Array, index: Array, i: int, loss: int
) -> None:
    """Begin to bring what samples after number i need; the nearest of them is checked."""
    last = index.shape[0] - 1
    if last < 0:
        return
    far = index[min(i + 3 * AHEAD, last)]
    prefetch_at(indptr, far)
    prefetch_at(labels, far)
    middle = index[min(i + 2 * AHEAD, last)]
    send_for_row(indices, values, max(indptr[middle], 0), min(indptr[middle + 1], indices.shape[0]))
    if i + AHEAD <= last:
        near = index[i + AHEAD]
        start, stop = indptr[near], indptr[near + 1]
        if start < 0 or stop < start or stop > indices.shape[0] or outside(indices[start:stop], table.shape[0]):
            raise IndexError("csr: a row has entries outside the arrays or columns outside 0..D-1")
        check_labels(labels[near : near + 1], loss)
        for j in range(start, stop):
            prefetch(table, indices[j], 0)
