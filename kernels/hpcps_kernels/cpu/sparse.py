"""Linear models of sparse samples.

Weights are picked out of memory one by one, and that bounds all of it: a few cycles an entry where they fit the
second-level cache, and some 10 ns where they do not, less what is sent for ahead.
"""

from __future__ import annotations

import numpy as np

from hpcps_kernels.cpu._jit import inlined, kernel, part
from hpcps_kernels.cpu._prefetch import prefetch_at
from hpcps_kernels.cpu.loss import check_delta, loss_sum, point_residuals, softmax_residuals
from hpcps_kernels.interface import Array

BLOCK = 64  # samples between whose scores and gradient everything stays in the second-level cache
NEAR_BYTES = 1 << 19  # what fits that cache needs no sending for
AHEAD = 4  # samples
TAKE_AHEAD = 8
LINE_BYTES = 64


@kernel
def csr_scores(scores: Array, indptr: Array, indices: Array, values: Array, weight: Array, bias: Array) -> None:
    for start in range(0, scores.shape[0], BLOCK):
        stop = min(start + BLOCK, scores.shape[0])
        _score(scores[start:stop], indptr[start : stop + 1], indices, values, weight, bias)


@part
def _score(scores: Array, indptr: Array, indices: Array, values: Array, weight: Array, bias: Array) -> None:
    check_rows(indptr, indices, weight.shape[0])
    far = weight.shape[0] * weight.itemsize > NEAR_BYTES
    for i in range(scores.shape[0]):
        if far:
            soon = min(i + AHEAD, scores.shape[0] - 1)
            for j in range(indptr[soon], indptr[soon + 1]):
                prefetch_at(weight, indices[j])
        scores[i] = bias[0] + row_score(indices, values, indptr[i], indptr[i + 1], weight)


@part
def check_rows(indptr: Array, indices: Array, columns: int) -> None:
    """Raise IndexError unless all entries of the rows lie in the arrays, and their columns in 0..columns-1."""
    wrong = indptr[0] < 0
    for i in range(indptr.shape[0] - 1):
        wrong |= indptr[i + 1] < indptr[i]
    if wrong or indptr[-1] > indices.shape[0] or outside(indices[indptr[0] : indptr[-1]], columns):
        raise IndexError("csr: a row has entries outside the arrays or columns outside 0..D-1")


@inlined
def outside(indices: Array, columns: int) -> bool:
    largest = np.uint32(0)
    for j in range(indices.shape[0]):
        largest = max(largest, np.uint32(indices[j]))  # a negative one becomes 2^31 or more
    return bool(indices.shape[0] > 0 and (largest >= columns or largest >= 1 << 31))


@inlined
def row_score(indices: Array, values: Array, start: int, stop: int, weight: Array) -> float:
    """The sum of value * weight over a row: four sums side by side, since one would wait for each addition."""
    a = b = c = d = weight.dtype.type(0)
    whole = start + (stop - start) // 4 * 4
    if values.shape[0] > 0:
        for j in range(start, whole, 4):
            a += values[j] * weight[np.uint32(indices[j])]
            b += values[j + 1] * weight[np.uint32(indices[j + 1])]
            c += values[j + 2] * weight[np.uint32(indices[j + 2])]
            d += values[j + 3] * weight[np.uint32(indices[j + 3])]
        for j in range(whole, stop):
            a += values[j] * weight[np.uint32(indices[j])]
    else:
        for j in range(start, whole, 4):
            a += weight[np.uint32(indices[j])]
            b += weight[np.uint32(indices[j + 1])]
            c += weight[np.uint32(indices[j + 2])]
            d += weight[np.uint32(indices[j + 3])]
        for j in range(whole, stop):
            a += weight[np.uint32(indices[j])]
    total: float = (a + b) + (c + d)
    return total


@kernel
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
    check_delta(loss, delta)
    weight_gradient[:] = 0
    bias_gradient[0] = 0
    block = np.empty(BLOCK, weight.dtype)
    losses = np.zeros((2, BLOCK))
    for start in range(0, labels.shape[0], BLOCK):
        stop = min(start + BLOCK, labels.shape[0])
        residual, rows = block[: stop - start], indptr[start : stop + 1]
        _score(residual, rows, indices, values, weight, bias)
        point_residuals(residual, labels[start:stop], sample_weight[start:stop], loss, delta, losses)
        _add_gradient(weight_gradient, bias_gradient, rows, indices, values, residual)
    total: float = loss_sum(losses)
    return total


@part
def _add_gradient(
    weight_gradient: Array, bias_gradient: Array, indptr: Array, indices: Array, values: Array, residual: Array
) -> None:
    far = weight_gradient.shape[0] * weight_gradient.itemsize > NEAR_BYTES
    for i in range(residual.shape[0]):
        r = residual[i]
        bias_gradient[0] += r
        if far:
            soon = min(i + AHEAD, residual.shape[0] - 1)
            for j in range(indptr[soon], indptr[soon + 1]):
                prefetch_at(weight_gradient, indices[j])
        if values.shape[0] > 0:
            for j in range(indptr[i], indptr[i + 1]):
                weight_gradient[np.uint32(indices[j])] += values[j] * r
        else:
            for j in range(indptr[i], indptr[i + 1]):
                weight_gradient[np.uint32(indices[j])] += r


@kernel
def csr_softmax_scores(scores: Array, indptr: Array, indices: Array, values: Array, weight: Array, bias: Array) -> None:
    for start in range(0, scores.shape[0], BLOCK):
        stop = min(start + BLOCK, scores.shape[0])
        _softmax_score(scores[start:stop], indptr[start : stop + 1], indices, values, weight, bias)


@part
def _softmax_score(scores: Array, indptr: Array, indices: Array, values: Array, weight: Array, bias: Array) -> None:
    check_rows(indptr, indices, weight.shape[0])
    one = weight.dtype.type(1)
    for i in range(scores.shape[0]):
        scores[i] = bias
        for j in range(indptr[i], indptr[i + 1]):
            value = values[j] if values.shape[0] > 0 else one
            d = np.uint32(indices[j])
            for k in range(scores.shape[1]):
                scores[i, k] += value * weight[d, k]


@kernel
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
    weight_gradient[:] = 0
    bias_gradient[:] = 0
    one = weight.dtype.type(1)
    block = np.empty((BLOCK, bias.shape[0]), weight.dtype)
    loss = 0.0
    for start in range(0, labels.shape[0], BLOCK):
        stop = min(start + BLOCK, labels.shape[0])
        residual, rows = block[: stop - start], indptr[start : stop + 1]
        _softmax_score(residual, rows, indices, values, weight, bias)
        loss += softmax_residuals(residual, labels[start:stop], sample_weight[start:stop])
        for i in range(stop - start):
            for k in range(bias.shape[0]):
                bias_gradient[k] += residual[i, k]
            for j in range(rows[i], rows[i + 1]):
                value = values[j] if values.shape[0] > 0 else one
                d = np.uint32(indices[j])
                for k in range(bias.shape[0]):
                    weight_gradient[d, k] += value * residual[i, k]
    return loss


@kernel
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
    _place_rows(indptr_out, indptr, indices.shape[0], index)
    if indptr_out[-1] != indices_out.shape[0]:
        raise ValueError("csr_take: the rows picked have more or fewer entries than the outputs")
    last, read = index.shape[0] - 1, values if values_out.shape[0] > 0 else values[:0]
    for i in range(index.shape[0]):
        soon = index[min(i + TAKE_AHEAD, last)]
        send_for_row(indices, read, indptr[soon], indptr[soon + 1])
        start, stop = indptr[index[i]], indptr[index[i] + 1]
        row = indices[start:stop]
        if outside(row, columns):
            raise IndexError("csr: a row has entries outside the arrays or columns outside 0..D-1")
        into = indices_out[indptr_out[i] :]
        for j in range(row.shape[0]):
            into[j] = row[j]
        if values_out.shape[0] > 0:
            _take_values(values_out[indptr_out[i] : indptr_out[i + 1]], read[start:stop], row, scale)


@part
def _take_values(out: Array, values: Array, columns: Array, scale: Array) -> None:
    to = out.dtype.type
    if values.shape[0] == 0:
        out[:] = 1
    for j in range(values.shape[0]):
        out[j] = to(values[j])
    if scale.shape[0] > 0:  # a random access an entry
        for j in range(columns.shape[0]):
            out[j] *= scale[np.uint32(columns[j])]


@part
def _place_rows(indptr_out: Array, indptr: Array, entries: int, index: Array) -> None:
    indptr_out[0] = 0
    for i in range(index.shape[0]):
        if index[i] < 0 or index[i] >= indptr.shape[0] - 1:
            raise IndexError("csr_take: an index is outside 0..N-1")
        start, stop = indptr[index[i]], indptr[index[i] + 1]
        if start < 0 or stop < start or stop > entries:
            raise IndexError("csr: a row has entries outside the arrays or columns outside 0..D-1")
        indptr_out[i + 1] = indptr_out[i] + (stop - start)


@inlined
def send_for_row(indices: Array, values: Array, start: int, stop: int) -> None:
    for j in range(start, stop, LINE_BYTES // 4):
        prefetch_at(indices, j)
    for j in range(start, min(stop, values.shape[0]), LINE_BYTES // 8):
        prefetch_at(values, j)
