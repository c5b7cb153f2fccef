"""Linear models of sparse samples.

Weights are picked out of memory one by one, and that bounds all of it: a few cycles an entry where they fit the
second-level cache, and some 10 ns where they do not, less what is sent for ahead.
"""

from __future__ import annotations

import numpy as np

from hpcps_kernels.cpu._class_rows import (
    add_row_products,
    add_row_products_of_ones,
    add_row_scores,
    add_row_scores_of_ones,
)
from hpcps_kernels.cpu._jit import inlined, kernel, part
from hpcps_kernels.cpu._prefetch import prefetch, prefetch_at
from hpcps_kernels.cpu.loss import check_delta, loss_sum, point_residuals, softmax_residuals
from hpcps_kernels.interface import Array

BLOCK = 64  # samples between whose scores and gradient everything stays in the second-level cache
NEAR_BYTES = 1 << 19  # what fits that cache needs no sending for
AHEAD = 4  # samples
LINE_BYTES = 64


@kernel
def csr_scores(scores: Array, indptr: Array, indices: Array, values: Array, weight: Array, bias: Array) -> None:
    for start in range(0, scores.shape[0], BLOCK):
        stop = min(start + BLOCK, scores.shape[0])
        _score(scores[start:stop], indptr[start : stop + 1], indices, values, weight, bias)


@part
def _score(scores: Array, indptr: Array, indices: Array, values: Array, weight: Array, bias: Array) -> None:
    check_rows(indptr, indices, weight.shape[0])
    table, last = weight.reshape(weight.shape[0], 1), scores.shape[0] - 1
    far = _is_far(weight)
    for i in range(scores.shape[0]):
        soon = min(i + AHEAD, last)
        send_for(table, indices, indptr[soon], indptr[soon + far])
        scores[i] = bias[0] + row_score(indices, values, np.uintp(indptr[i]), np.uintp(indptr[i + 1]), weight)


@inlined
def _is_far(table: Array) -> int:
    """1 where parts of the table are to be sent for, else 0."""
    return 1 if table.size * table.itemsize > NEAR_BYTES else 0


@inlined
def send_for(table: Array, indices: Array, start: int, stop: int) -> None:
    """Begin to bring the rows of a table (D, K) that these entries name."""
    for j in range(np.uintp(start), np.uintp(stop)):
        prefetch(table, np.uint32(indices[j]), 0)


@part
def check_rows(indptr: Array, indices: Array, columns: int) -> None:
    """Raise IndexError unless all entries of the rows lie in the arrays, and their columns in 0..columns-1."""
    wrong = indptr[0] < 0
    for i in range(indptr.shape[0] - 1):
        wrong |= indptr[i + 1] < indptr[i]
    if wrong or indptr[-1] > indices.shape[0]:
        raise IndexError("csr: a row has entries outside the arrays or columns outside 0..D-1")
    largest = np.uint32(0)
    for j in range(np.uintp(indptr[0]), np.uintp(indptr[-1])):
        largest = max(largest, np.uint32(indices[j]))  # a negative one becomes 2^31 or more
    if largest >= columns and indptr[-1] > indptr[0]:
        raise IndexError("csr: a row has entries outside the arrays or columns outside 0..D-1")


@part
def check_columns(index: Array, indptr: Array, indices: Array, values: Array, columns: int) -> None:
    """Raise IndexError unless the entries of the rows `index`, which lie in the arrays, have columns in 0..columns-1.

    Brings these entries near: rows picked at random are sent for some rows ahead.
    """
    last, entries, largest = index.shape[0] - 1, 0, np.uint32(0)
    stored = min(values.shape[0], 1)
    for i in range(index.shape[0]):
        soon = index[min(i + AHEAD, last)]
        for j in range(np.uintp(indptr[soon]), np.uintp(indptr[soon + 1]), np.uintp(LINE_BYTES // 4)):
            prefetch_at(indices, j)
        for j in range(np.uintp(indptr[soon]), np.uintp(indptr[soon + stored]), np.uintp(LINE_BYTES // 8)):
            prefetch_at(values, j)
        start, stop = indptr[index[i]], indptr[index[i] + 1]
        entries += stop - start
        for j in range(np.uintp(start), np.uintp(stop)):
            largest = max(largest, np.uint32(indices[j]))
    if largest >= columns and entries > 0:
        raise IndexError("csr: a row has entries outside the arrays or columns outside 0..D-1")


@inlined
def row_score(indices: Array, values: Array, start: int, stop: int, weight: Array) -> float:
    """The sum of value * weight over a row: four sums side by side, since one would wait for each addition."""
    a = b = c = d = weight.dtype.type(0)
    one, two, three, four = np.uintp(1), np.uintp(2), np.uintp(3), np.uintp(4)
    whole = start + (stop - start) // four * four
    if values.shape[0] > 0:
        for j in range(start, whole, four):
            a += values[j] * weight[np.uint32(indices[j])]
            b += values[j + one] * weight[np.uint32(indices[j + one])]
            c += values[j + two] * weight[np.uint32(indices[j + two])]
            d += values[j + three] * weight[np.uint32(indices[j + three])]
        for j in range(whole, stop):
            a += values[j] * weight[np.uint32(indices[j])]
    else:
        for j in range(start, whole, four):
            a += weight[np.uint32(indices[j])]
            b += weight[np.uint32(indices[j + one])]
            c += weight[np.uint32(indices[j + two])]
            d += weight[np.uint32(indices[j + three])]
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
    table, last = weight_gradient.reshape(weight_gradient.shape[0], 1), residual.shape[0] - 1
    far = _is_far(weight_gradient)
    for i in range(residual.shape[0]):
        soon = min(i + AHEAD, last)
        send_for(table, indices, indptr[soon], indptr[soon + far])
        r = residual[i]
        bias_gradient[0] += r
        if values.shape[0] > 0:
            for j in range(np.uintp(indptr[i]), np.uintp(indptr[i + 1])):
                weight_gradient[np.uint32(indices[j])] += values[j] * r
        else:
            for j in range(np.uintp(indptr[i]), np.uintp(indptr[i + 1])):
                weight_gradient[np.uint32(indices[j])] += r


@kernel
def csr_softmax_scores(scores: Array, indptr: Array, indices: Array, values: Array, weight: Array, bias: Array) -> None:
    for start in range(0, scores.shape[0], BLOCK):
        stop = min(start + BLOCK, scores.shape[0])
        _softmax_score(scores[start:stop], indptr[start : stop + 1], indices, values, weight, bias)


@part
def _softmax_score(scores: Array, indptr: Array, indices: Array, values: Array, weight: Array, bias: Array) -> None:
    check_rows(indptr, indices, weight.shape[0])
    far, last = _is_far(weight), scores.shape[0] - 1
    for i in range(scores.shape[0]):
        soon = min(i + AHEAD, last)
        send_for(weight, indices, indptr[soon], indptr[soon + far])
        scores[i] = bias
        if values.shape[0] > 0:
            add_row_scores(weight, indices, values, indptr[i], indptr[i + 1], scores, i)
        else:
            add_row_scores_of_ones(weight, indices, values, indptr[i], indptr[i + 1], scores, i)


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
    block = np.empty((BLOCK, bias.shape[0]), weight.dtype)
    loss = 0.0
    for start in range(0, labels.shape[0], BLOCK):
        stop = min(start + BLOCK, labels.shape[0])
        residual, rows = block[: stop - start], indptr[start : stop + 1]
        _softmax_score(residual, rows, indices, values, weight, bias)
        loss += softmax_residuals(residual, labels[start:stop], sample_weight[start:stop])
        _add_softmax_gradient(weight_gradient, bias_gradient, rows, indices, values, residual)
    return loss


@part
def _add_softmax_gradient(
    weight_gradient: Array, bias_gradient: Array, indptr: Array, indices: Array, values: Array, residual: Array
) -> None:
    far, last = _is_far(weight_gradient), residual.shape[0] - 1
    for i in range(residual.shape[0]):
        soon = min(i + AHEAD, last)
        send_for(weight_gradient, indices, indptr[soon], indptr[soon + far])
        for k in range(bias_gradient.shape[0]):
            bias_gradient[k] += residual[i, k]
        if values.shape[0] > 0:
            add_row_products(weight_gradient, indices, values, indptr[i], indptr[i + 1], residual, i)
        else:
            add_row_products_of_ones(weight_gradient, indices, values, indptr[i], indptr[i + 1], residual, i)


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
    read = values if values_out.shape[0] > 0 else values[:0]
    for begin in range(0, index.shape[0], BLOCK):
        end = min(begin + BLOCK, index.shape[0])
        check_columns(index[begin:end], indptr, indices, read, columns)
        for i in range(begin, end):
            start, at = np.uintp(indptr[index[i]]), np.uintp(indptr_out[i])
            length = np.uintp(indptr[index[i] + 1]) - start
            for j in range(length):
                indices_out[at + j] = indices[start + j]
            if values_out.shape[0] > 0:
                _take_values(values_out, at, read, scale, indices, start, length)


@inlined
def _take_values(out: Array, at: int, values: Array, scale: Array, indices: Array, start: int, length: int) -> None:
    to = out.dtype.type
    for j in range(length):
        out[at + j] = to(values[start + j]) if values.shape[0] > 0 else to(1)
    if scale.shape[0] > 0:  # a random access an entry
        for j in range(length):
            out[at + j] *= scale[np.uint32(indices[start + j])]


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
