"""Linear models that learn from sparse samples one after the other.

The entries of a sample are places all over a large table, and to bring those is most of the time. So the state of a
feature is one cache line, sent for some samples ahead. It is read and written where it lies: to gather it into vectors
takes longer than the arithmetic that these would save. What is left is the way from one sample to the next: features
that both have are written, read, summed up and turned into a residual before they are written again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcps_kernels.cpu._jit import inlined, kernel, part
from hpcps_kernels.cpu._prefetch import LINE_BYTES, prefetch, prefetch_at
from hpcps_kernels.cpu.loss import CHUNK, check_delta, check_labels, point
from hpcps_kernels.interface import Array

AHEAD = 2  # samples


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
    common = indptr, indices, values if values.size else None, labels, index, loss, delta
    table = weight.reshape(len(weight), -1)
    total: float = online_sgd_pass(table, bias, *common, learning_rate, l2)
    return total


@kernel
def online_sgd_pass(
    table: Array,
    bias: Array,
    indptr: Array,
    indices: Array,
    values: Array | None,
    labels: Array,
    index: Array,
    loss: int,
    delta: float,
    learning_rate: float,
    l2: float,
) -> float:
    to = table.dtype.type
    rate, keep = to(learning_rate), to(1 - learning_rate * l2)
    _check_visits(index, indptr, indices.shape[0])
    check_delta(loss, delta)
    label, total = np.empty(CHUNK, table.dtype), 0.0
    largest = np.uint32(0)
    for i in range(-min(AHEAD, index.shape[0]), 0):
        largest = _send_for(table, indices, indptr, index, i, largest)
    for begin in range(0, index.shape[0], CHUNK):
        visits = index[begin : begin + CHUNK]
        _take_labels(label, visits, labels, loss)
        for i in range(visits.shape[0]):
            largest = _send_for(table, indices, indptr, index, begin + i, largest)
            if largest >= table.shape[0]:
                raise IndexError("csr: a row has entries outside the arrays or columns outside 0..D-1")
            first, stop = np.uintp(indptr[visits[i]]), np.uintp(indptr[visits[i] + 1])
            if values is None:
                score = _sum(table, indices, first, stop) + bias[0]
            else:
                score = _score(table, indices, values, first, stop) + bias[0]
            each, residual = point(score, label[i], loss, to(delta))
            r = to(residual)
            total += np.float64(each)
            step = rate * r
            if values is None:
                for j in range(first, stop):
                    d = np.uint32(indices[j])
                    table[d, 0] = keep * table[d, 0] - step
            else:
                for j in range(first, stop):
                    d = np.uint32(indices[j])
                    table[d, 0] = keep * table[d, 0] - step * to(values[j])
            bias[0] -= step
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
    common = indptr, indices, values if values.size else None, labels, index, loss, delta
    table = state.reshape(len(state), -1)
    total: float = online_adagrad_pass(table, bias, *common, learning_rate, epsilon, l2)
    return total


@kernel
def online_adagrad_pass(
    table: Array,
    bias: Array,
    indptr: Array,
    indices: Array,
    values: Array | None,
    labels: Array,
    index: Array,
    loss: int,
    delta: float,
    learning_rate: float,
    epsilon: float,
    l2: float,
) -> float:
    to = table.dtype.type
    rate, floor, decay = to(learning_rate), to(epsilon), to(l2)
    _check_visits(index, indptr, indices.shape[0])
    check_delta(loss, delta)
    label, total = np.empty(CHUNK, table.dtype), 0.0
    largest = np.uint32(0)
    for i in range(-min(AHEAD, index.shape[0]), 0):
        largest = _send_for(table, indices, indptr, index, i, largest)
    for begin in range(0, index.shape[0], CHUNK):
        visits = index[begin : begin + CHUNK]
        _take_labels(label, visits, labels, loss)
        for i in range(visits.shape[0]):
            largest = _send_for(table, indices, indptr, index, begin + i, largest)
            if largest >= table.shape[0]:
                raise IndexError("csr: a row has entries outside the arrays or columns outside 0..D-1")
            first, stop = np.uintp(indptr[visits[i]]), np.uintp(indptr[visits[i] + 1])
            if values is None:
                score = _sum(table, indices, first, stop) + bias[0]
            else:
                score = _score(table, indices, values, first, stop) + bias[0]
            each, residual = point(score, label[i], loss, to(delta))
            r = to(residual)
            total += np.float64(each)
            if values is None:
                for j in range(first, stop):
                    d = np.uint32(indices[j])
                    w, a = table[d, 0], table[d, 1]
                    table[d, 0], table[d, 1] = _adagrad_step(w, a, r + decay * w, rate, floor)
            else:
                for j in range(first, stop):
                    d = np.uint32(indices[j])
                    w, a = table[d, 0], table[d, 1]
                    table[d, 0], table[d, 1] = _adagrad_step(w, a, r * to(values[j]) + decay * w, rate, floor)
            bias[0], bias[1] = _adagrad_step(bias[0], bias[1], r, rate, floor)
    return total


@inlined
def _adagrad_step(w: float, a: float, g: float, rate: float, floor: float) -> tuple[float, float]:
    """A weight and its accumulator after a step."""
    total = a + g * g
    return (w if g == 0 else w - rate * g / (np.sqrt(total) + floor)), total


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
    common = indptr, indices, values if values.size else None, labels, index, loss, delta
    table = state.reshape(len(state), -1)
    total: float = online_ftrl_pass(table, bias, *common, alpha, beta, l1, l2)
    return total


@kernel
def online_ftrl_pass(
    table: Array,
    bias: Array,
    indptr: Array,
    indices: Array,
    values: Array | None,
    labels: Array,
    index: Array,
    loss: int,
    delta: float,
    alpha: float,
    beta: float,
    l1: float,
    l2: float,
) -> float:
    to = table.dtype.type
    steepness, start, sparsity, decay, nothing = to(1 / alpha), to(beta), to(l1), to(l2), to(0)
    weight = np.empty(_check_visits(index, indptr, indices.shape[0]), table.dtype)  # of a sample's features
    check_delta(loss, delta)
    label, total = np.empty(CHUNK, table.dtype), 0.0
    largest = np.uint32(0)
    for i in range(-min(AHEAD, index.shape[0]), 0):
        largest = _send_for(table, indices, indptr, index, i, largest)
    for begin in range(0, index.shape[0], CHUNK):
        visits = index[begin : begin + CHUNK]
        _take_labels(label, visits, labels, loss)
        for i in range(visits.shape[0]):
            largest = _send_for(table, indices, indptr, index, begin + i, largest)
            if largest >= table.shape[0]:
                raise IndexError("csr: a row has entries outside the arrays or columns outside 0..D-1")
            first, stop = np.uintp(indptr[visits[i]]), np.uintp(indptr[visits[i] + 1])
            score = bias_weight = _ftrl_weight(bias[0], np.sqrt(bias[1]), steepness, start, nothing, nothing)
            for j in range(first, stop):
                d = np.uint32(indices[j])
                w = _ftrl_weight(table[d, 0], np.sqrt(table[d, 1]), steepness, start, sparsity, decay)
                weight[j - first] = w
                score += w if values is None else to(values[j]) * w
            each, residual = point(score, label[i], loss, to(delta))
            r = to(residual)
            total += np.float64(each)
            if values is None:
                for j in range(first, stop):
                    d, w = np.uint32(indices[j]), weight[j - first]
                    table[d, 0], table[d, 1] = _ftrl_step(table[d, 0], table[d, 1], w, r, steepness)
            else:
                for j in range(first, stop):
                    d, w = np.uint32(indices[j]), weight[j - first]
                    table[d, 0], table[d, 1] = _ftrl_step(table[d, 0], table[d, 1], w, r * to(values[j]), steepness)
            bias[0], bias[1] = _ftrl_step(bias[0], bias[1], bias_weight, r, steepness)
    return total


@kernel
def online_ftrl_weights(weight: Array, state: Array, alpha: float, beta: float, l1: float, l2: float) -> None:
    to = state.dtype.type
    steepness, start, sparsity, decay = to(1 / alpha), to(beta), to(l1), to(l2)
    for d in range(weight.shape[0]):
        weight[d] = _ftrl_weight(state[d, 0], np.sqrt(state[d, 1]), steepness, start, sparsity, decay)


@inlined
def _ftrl_weight(z: float, root: float, steepness: float, beta: float, l1: float, l2: float) -> float:
    weight = (np.copysign(l1, z) - z) / ((beta + root) * steepness + l2)
    return l1 - l1 if abs(z) <= l1 else weight


@inlined
def _ftrl_step(z: float, n: float, w: float, g: float, steepness: float) -> tuple[float, float]:
    """z and n after a step."""
    total = n + g * g
    return z + (g - (np.sqrt(total) - np.sqrt(n)) * steepness * w), total


@inlined
def _score(table: Array, indices: Array, values: Array, first: Any, stop: Any) -> float:
    """The sum of value * table[column, 0] over a row, in four sums: one would wait for each addition."""
    to = table.dtype.type
    a = b = c = d = to(0)
    whole = stop - (stop - first) % np.uintp(4)
    for j in range(first, whole, np.uintp(4)):
        a += to(values[j]) * table[np.uint32(indices[j]), 0]
        b += to(values[j + np.uintp(1)]) * table[np.uint32(indices[j + np.uintp(1)]), 0]
        c += to(values[j + np.uintp(2)]) * table[np.uint32(indices[j + np.uintp(2)]), 0]
        d += to(values[j + np.uintp(3)]) * table[np.uint32(indices[j + np.uintp(3)]), 0]
    for j in range(whole, stop):
        a += to(values[j]) * table[np.uint32(indices[j]), 0]
    total: float = (a + b) + (c + d)
    return total


@inlined
def _sum(table: Array, indices: Array, first: Any, stop: Any) -> float:
    """The same where all values are 1."""
    a = b = c = d = table.dtype.type(0)
    whole = stop - (stop - first) % np.uintp(4)
    for j in range(first, whole, np.uintp(4)):
        a += table[np.uint32(indices[j]), 0]
        b += table[np.uint32(indices[j + np.uintp(1)]), 0]
        c += table[np.uint32(indices[j + np.uintp(2)]), 0]
        d += table[np.uint32(indices[j + np.uintp(3)]), 0]
    for j in range(whole, stop):
        a += table[np.uint32(indices[j]), 0]
    total: float = (a + b) + (c + d)
    return total


@part
def _check_visits(index: Array, indptr: Array, entries: int) -> int:
    """The length of the longest row that `index` names. Raises IndexError for rows that are not there."""
    longest: int = 0
    wrong = False
    for i in range(index.shape[0]):
        if index[i] < 0 or index[i] >= indptr.shape[0] - 1:
            raise IndexError("online: an index is outside 0..n-1")
        start, stop = indptr[index[i]], indptr[index[i] + 1]
        wrong |= (start < 0) | (stop < start) | (stop > entries)
        if stop - start > longest:
            longest = stop - start
    if wrong:
        raise IndexError("csr: a row has entries outside the arrays or columns outside 0..D-1")
    return longest


@inlined
def _send_for(table: Array, indices: Array, indptr: Array, index: Array, i: int, largest: Any) -> Any:
    """Begin to bring the state that the sample AHEAD of visit i needs, and the entries of one as far again; returns the
    largest column seen so far, a negative one being 2^31 or more."""
    last = index.shape[0] - 1
    soon, far = index[min(i + AHEAD, last)], index[min(i + 2 * AHEAD, last)]
    for j in range(np.uintp(indptr[far]), np.uintp(indptr[far + 1]), np.uintp(LINE_BYTES // 4)):
        prefetch_at(indices, j)
    for j in range(np.uintp(indptr[soon]), np.uintp(indptr[soon + 1])):
        d = np.uint32(indices[j])
        largest = max(largest, d)
        prefetch(table, d, 0)
    return largest


@part
def _take_labels(out: Array, index: Array, labels: Array, loss: int) -> None:
    """The labels of some samples, checked."""
    for i in range(index.shape[0]):
        out[i] = labels[index[i]]
    check_labels(out[: index.shape[0]], loss)
