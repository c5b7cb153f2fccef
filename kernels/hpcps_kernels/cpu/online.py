"""Linear models that learn from sparse samples one after the other.

The entries of a sample are places all over a large table, and to bring those is most of the time. So a chunk's entries
are brought first, and then, a few samples ahead, the state of their features, a cache line a feature. The state goes
into a row of its own, where the arithmetic is vector code, and what a step adds is scattered back.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcps_kernels.cpu._jit import inlined, kernel, part
from hpcps_kernels.cpu.loss import CHUNK, check_delta, check_labels, loss_sum, point, point_residuals
from hpcps_kernels.cpu.sparse import check_columns, send_for
from hpcps_kernels.interface import Array

AHEAD = 2  # samples
LANES = 8  # a row is filled up with zeros to a multiple of these


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
    to = weight.dtype.type
    rate, decay = to(learning_rate), to(l2)
    table = weight.reshape(weight.shape[0], 1)
    check_delta(loss, delta)
    x, w = np.ones((2, _longest(indptr, indices.shape[0], index)), weight.dtype)
    seen, losses = np.zeros((2, CHUNK), weight.dtype), np.zeros((2, CHUNK))
    for begin in range(0, index.shape[0], CHUNK):
        visits = index[begin : begin + CHUNK]
        _prepare(seen, visits, indptr, indices, values, labels, table.shape[0], loss)
        for i in range(visits.shape[0]):
            row, soon = visits[i], visits[min(i + AHEAD, visits.shape[0] - 1)]
            send_for(table, indices, indptr[soon], indptr[soon + 1])
            first, count = np.uintp(indptr[row]), np.uintp(indptr[row + 1] - indptr[row])
            size = _take(x, values, first, count)
            for j in range(count):
                w[j] = weight[np.uint32(indices[first + j])]
            for j in range(count, size):
                w[j] = 0
            seen[0, i] = _dot(x, w, size) + bias[0]
            r = to(point(np.float64(seen[0, i]), np.float64(seen[1, i]), loss, delta)[1])
            for j in range(size):
                w[j] = rate * (r * x[j] + decay * w[j])
            for j in range(count):
                weight[np.uint32(indices[first + j])] -= w[j]
            bias[0] -= rate * r
        _count(seen, visits.shape[0], loss, delta, losses)
    total: float = loss_sum(losses)
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
    to = state.dtype.type
    rate, floor, decay = to(learning_rate), to(epsilon), to(l2)
    check_delta(loss, delta)
    x, w, a = np.ones((3, _longest(indptr, indices.shape[0], index)), state.dtype)
    seen, losses = np.zeros((2, CHUNK), state.dtype), np.zeros((2, CHUNK))
    for begin in range(0, index.shape[0], CHUNK):
        visits = index[begin : begin + CHUNK]
        _prepare(seen, visits, indptr, indices, values, labels, state.shape[0], loss)
        for i in range(visits.shape[0]):
            row, soon = visits[i], visits[min(i + AHEAD, visits.shape[0] - 1)]
            send_for(state, indices, indptr[soon], indptr[soon + 1])
            first, count = np.uintp(indptr[row]), np.uintp(indptr[row + 1] - indptr[row])
            size = _take(x, values, first, count)
            _gather_pairs(w, a, state, indices, first, count, size)
            seen[0, i] = _dot(x, w, size) + bias[0]
            r = to(point(np.float64(seen[0, i]), np.float64(seen[1, i]), loss, delta)[1])
            for j in range(size):
                w[j], a[j] = _adagrad_step(w[j], a[j], r * x[j] + decay * w[j], rate, floor)
            _scatter_pairs(state, indices, first, count, w, a)
            step, square = _adagrad_step(bias[0], bias[1], r, rate, floor)
            bias[0] += step
            bias[1] += square
        _count(seen, visits.shape[0], loss, delta, losses)
    total: float = loss_sum(losses)
    return total


@inlined
def _adagrad_step(w: float, a: float, g: float, rate: float, floor: float) -> tuple[float, float]:
    """What is added to a weight and its accumulator."""
    step = -rate * g / (np.sqrt(a + g * g) + floor)
    return g if g == 0 else step, g * g


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
    to = state.dtype.type
    steepness, start, sparsity, decay, nothing = to(1 / alpha), to(beta), to(l1), to(l2), to(0)
    check_delta(loss, delta)
    x, z, n, w = np.ones((4, _longest(indptr, indices.shape[0], index)), state.dtype)
    seen, losses = np.zeros((2, CHUNK), state.dtype), np.zeros((2, CHUNK))
    for begin in range(0, index.shape[0], CHUNK):
        visits = index[begin : begin + CHUNK]
        _prepare(seen, visits, indptr, indices, values, labels, state.shape[0], loss)
        for i in range(visits.shape[0]):
            row, soon = visits[i], visits[min(i + AHEAD, visits.shape[0] - 1)]
            send_for(state, indices, indptr[soon], indptr[soon + 1])
            first, count = np.uintp(indptr[row]), np.uintp(indptr[row + 1] - indptr[row])
            size = _take(x, values, first, count)
            _gather_pairs(z, n, state, indices, first, count, size)
            for j in range(size):
                n[j] = np.sqrt(n[j])
                w[j] = _ftrl_weight(z[j], n[j], steepness, start, sparsity, decay)
            root = np.sqrt(bias[1])
            bias_weight = _ftrl_weight(bias[0], root, steepness, start, nothing, nothing)
            seen[0, i] = _dot(x, w, size) + bias_weight
            r = to(point(np.float64(seen[0, i]), np.float64(seen[1, i]), loss, delta)[1])
            for j in range(size):
                z[j], n[j] = _ftrl_step(w[j], n[j], r * x[j], steepness)
            _scatter_pairs(state, indices, first, count, z, n)
            step, square = _ftrl_step(bias_weight, root, r, steepness)
            bias[0] += step
            bias[1] += square
        _count(seen, visits.shape[0], loss, delta, losses)
    total: float = loss_sum(losses)
    return total


@inlined
def _ftrl_weight(z: float, root: float, steepness: float, beta: float, l1: float, l2: float) -> float:
    weight = (np.copysign(l1, z) - z) / ((beta + root) * steepness + l2)
    return l1 - l1 if abs(z) <= l1 else weight


@inlined
def _ftrl_step(w: float, root: float, g: float, steepness: float) -> tuple[float, float]:
    """What is added to z and n."""
    square = g * g
    return g - (np.sqrt(root * root + square) - root) * steepness * w, square


@part
def _longest(indptr: Array, entries: int, index: Array) -> int:
    """Room for the longest row that `index` names. Raises IndexError for rows that are not there."""
    longest, wrong = 0, False
    for i in range(index.shape[0]):
        if index[i] < 0 or index[i] >= indptr.shape[0] - 1:
            raise IndexError("online: an index is outside 0..n-1")
        start, stop = indptr[index[i]], indptr[index[i] + 1]
        wrong |= (start < 0) | (stop < start) | (stop > entries)
        longest = max(longest, stop - start)
    if wrong:
        raise IndexError("csr: a row has entries outside the arrays or columns outside 0..D-1")
    return (longest // LANES + 1) * LANES


@inlined
def _take(x: Array, values: Array, first: Any, count: Any) -> Any:
    """The values of a row, then zeros; all 1 before and after where values are left out. Returns how many."""
    lanes = np.uintp(LANES)
    size = (count + lanes - np.uintp(1)) // lanes * lanes
    if values.shape[0] > 0:
        for j in range(count):
            x[j] = x.dtype.type(values[first + j])
        for j in range(count, size):
            x[j] = 0
    return size


@inlined
def _gather_pairs(one: Array, other: Array, state: Array, indices: Array, first: int, count: int, size: int) -> None:
    for j in range(count):
        d = np.uint32(indices[first + j])
        one[j], other[j] = state[d, 0], state[d, 1]
    for j in range(count, size):
        one[j], other[j] = 0, 0


@inlined
def _scatter_pairs(state: Array, indices: Array, first: int, count: int, one: Array, other: Array) -> None:
    for j in range(count):
        d = np.uint32(indices[first + j])
        state[d, 0] += one[j]
        state[d, 1] += other[j]


@inlined
def _dot(x: Array, w: Array, size: int) -> float:
    """The sum of x * w: eight sums side by side, since one would wait for each addition."""
    a = b = c = d = e = f = g = h = x.dtype.type(0)
    for j in range(np.uintp(0), size, np.uintp(LANES)):
        a += x[j + np.uintp(0)] * w[j + np.uintp(0)]
        b += x[j + np.uintp(1)] * w[j + np.uintp(1)]
        c += x[j + np.uintp(2)] * w[j + np.uintp(2)]
        d += x[j + np.uintp(3)] * w[j + np.uintp(3)]
        e += x[j + np.uintp(4)] * w[j + np.uintp(4)]
        f += x[j + np.uintp(5)] * w[j + np.uintp(5)]
        g += x[j + np.uintp(6)] * w[j + np.uintp(6)]
        h += x[j + np.uintp(7)] * w[j + np.uintp(7)]
    total: float = ((a + e) + (c + g)) + ((b + f) + (d + h))
    return total


@part
def _prepare(
    seen: Array,
    index: Array,
    indptr: Array,
    indices: Array,
    values: Array,
    labels: Array,
    features: int,
    loss: int,
) -> None:
    """Check samples, bring their entries near and put their labels into seen[1]."""
    check_columns(index, indptr, indices, values, features)
    for i in range(index.shape[0]):
        seen[1, i] = labels[index[i]]
    check_labels(seen[1, : index.shape[0]], loss)


@part
def _count(seen: Array, samples: int, loss: int, delta: float, losses: Array) -> None:
    """Add the losses of samples whose scores and labels are in `seen`."""
    point_residuals(seen[0, :samples], seen[1, :samples], seen[0, :0], loss, delta, losses)
