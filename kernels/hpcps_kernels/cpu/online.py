"""Linear models that learn from sparse samples one after the other.

The entries of a sample are places all over a large table. So three samples ahead are on their way: of the farthest its
bounds, of the next its entries, of the nearest the state of its features, a cache line a feature. The state goes into a
row of its own first, where the arithmetic is vector code, and what a step adds is scattered back.
"""

from __future__ import annotations

import numpy as np

from hpcps_kernels.cpu._jit import inlined, kernel, part
from hpcps_kernels.cpu._prefetch import prefetch, prefetch_at
from hpcps_kernels.cpu.loss import CHUNK, check_delta, check_labels, loss_sum, point, point_residuals
from hpcps_kernels.cpu.sparse import outside, send_for_row
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
    for i in range(-AHEAD, index.shape[0]):
        _send_for(table, indptr, indices, values, labels, index, i, loss)
        if i >= 0:
            row = index[i]
            columns = indices[indptr[row] : indptr[row + 1]]
            size = _take(x, values, indptr[row], columns.shape[0])
            for j in range(columns.shape[0]):
                w[j] = weight[np.uint32(columns[j])]
            w[columns.shape[0] : size] = 0
            r = to(_residual(_dot(x, w, size) + bias[0], labels[row], loss, delta, i, seen, losses))
            for j in range(size):
                w[j] = rate * (r * x[j] + decay * w[j])
            for j in range(columns.shape[0]):
                weight[np.uint32(columns[j])] -= w[j]
            bias[0] -= rate * r
    total: float = _finish(index.shape[0], loss, delta, seen, losses)
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
    for i in range(-AHEAD, index.shape[0]):
        _send_for(state, indptr, indices, values, labels, index, i, loss)
        if i >= 0:
            row = index[i]
            columns = indices[indptr[row] : indptr[row + 1]]
            size = _take(x, values, indptr[row], columns.shape[0])
            _gather_pairs(w, a, state, columns, size)
            r = to(_residual(_dot(x, w, size) + bias[0], labels[row], loss, delta, i, seen, losses))
            for j in range(size):
                w[j], a[j] = _adagrad_step(w[j], a[j], r * x[j] + decay * w[j], rate, floor)
            _scatter_pairs(state, columns, w, a)
            step, square = _adagrad_step(bias[0], bias[1], r, rate, floor)
            bias[0] += step
            bias[1] += square
    total: float = _finish(index.shape[0], loss, delta, seen, losses)
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
    for i in range(-AHEAD, index.shape[0]):
        _send_for(state, indptr, indices, values, labels, index, i, loss)
        if i >= 0:
            row = index[i]
            columns = indices[indptr[row] : indptr[row + 1]]
            size = _take(x, values, indptr[row], columns.shape[0])
            _gather_pairs(z, n, state, columns, size)
            for j in range(size):
                n[j] = np.sqrt(n[j])
                w[j] = _ftrl_weight(z[j], n[j], steepness, start, sparsity, decay)
            root = np.sqrt(bias[1])
            bias_weight = _ftrl_weight(bias[0], root, steepness, start, nothing, nothing)
            r = to(_residual(_dot(x, w, size) + bias_weight, labels[row], loss, delta, i, seen, losses))
            for j in range(size):
                z[j], n[j] = _ftrl_step(w[j], n[j], r * x[j], steepness)
            _scatter_pairs(state, columns, z, n)
            step, square = _ftrl_step(bias_weight, root, r, steepness)
            bias[0] += step
            bias[1] += square
    total: float = _finish(index.shape[0], loss, delta, seen, losses)
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
def _take(x: Array, values: Array, start: int, count: int) -> int:
    """The values of a row, then zeros; all 1 before and after where values are left out. Returns how many."""
    size = (count + LANES - 1) // LANES * LANES
    if values.shape[0] > 0:
        numbers, to = values[start : start + count], x.dtype.type
        for j in range(count):
            x[j] = to(numbers[j])
        x[count:size] = 0
    return size


@inlined
def _gather_pairs(first: Array, second: Array, state: Array, columns: Array, size: int) -> None:
    for j in range(columns.shape[0]):
        d = np.uint32(columns[j])
        first[j], second[j] = state[d, 0], state[d, 1]
    first[columns.shape[0] : size] = 0
    second[columns.shape[0] : size] = 0


@inlined
def _scatter_pairs(state: Array, columns: Array, first: Array, second: Array) -> None:
    for j in range(columns.shape[0]):
        d = np.uint32(columns[j])
        state[d, 0] += first[j]
        state[d, 1] += second[j]


@inlined
def _dot(x: Array, w: Array, size: int) -> float:
    """The sum of x * w: eight sums side by side, since one would wait for each addition."""
    a = b = c = d = e = f = g = h = x.dtype.type(0)
    for j in range(0, size, LANES):
        a += x[j] * w[j]
        b += x[j + 1] * w[j + 1]
        c += x[j + 2] * w[j + 2]
        d += x[j + 3] * w[j + 3]
        e += x[j + 4] * w[j + 4]
        f += x[j + 5] * w[j + 5]
        g += x[j + 6] * w[j + 6]
        h += x[j + 7] * w[j + 7]
    total: float = ((a + e) + (c + g)) + ((b + f) + (d + h))
    return total


@inlined
def _residual(score: float, label: float, loss: int, delta: float, i: int, seen: Array, losses: Array) -> float:
    """The residual of sample number i. Its loss is for later, many at a time."""
    at = i % CHUNK
    seen[0, at], seen[1, at] = score, label
    if at == CHUNK - 1:
        point_residuals(seen[0], seen[1], seen[0, :0], loss, delta, losses)
    slope: float = point(np.float64(score), np.float64(label), loss, delta)[1]
    return slope


@part
def _finish(samples: int, loss: int, delta: float, seen: Array, losses: Array) -> float:
    rest = samples % CHUNK
    point_residuals(seen[0, :rest], seen[1, :rest], seen[0, :0], loss, delta, losses)
    total: float = loss_sum(losses)
    return total


@inlined
def _send_for(
    table: Array, indptr: Array, indices: Array, values: Array, labels: Array, index: Array, i: int, loss: int
) -> None:
    """Begin to bring what the samples after number i need; the columns and the label of the nearest are checked."""
    last = index.shape[0] - 1
    if last < 0:
        return
    far = index[min(i + 3 * AHEAD, last)]
    prefetch_at(indptr, far)
    prefetch_at(labels, far)
    middle = index[min(i + 2 * AHEAD, last)]
    send_for_row(indices, values, indptr[middle], indptr[middle + 1])
    if i + AHEAD <= last:
        near = index[i + AHEAD]
        columns = indices[indptr[near] : indptr[near + 1]]
        if outside(columns, table.shape[0]):
            raise IndexError("csr: a row has entries outside the arrays or columns outside 0..D-1")
        check_labels(labels[near : near + 1], loss)
        for j in range(columns.shape[0]):
            prefetch(table, np.uint32(columns[j]), 0)
