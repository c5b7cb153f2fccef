"""Gradients of several grains in one call, added in tree order while they are in cache."""

from __future__ import annotations

import numpy as np

from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.cpu._outer import COLUMN_BYTES, ROWS, add_outer_products, outer_products
from hpcps_kernels.cpu._tiles import CLASSES, add_products, add_scores
from hpcps_kernels.cpu._tiles import ROWS as TILE_ROWS
from hpcps_kernels.cpu._tree import add_row, copy_into, depth_and_left, fold
from hpcps_kernels.cpu.gradient import BLOCK, PANEL, compiled, dense_gradient
from hpcps_kernels.cpu.loss import softmax_residuals
from hpcps_kernels.interface import Array

LINE_BYTES = 64


def dense_grains(
    stack: Array,
    losses: Array,
    samples: Array,
    labels: Array,
    sample_weight: Array,
    weight: Array,
    bias: Array,
    bounds: Array,
    adds: Array,
    loss: int,
    delta: float,
) -> None:
    dense_grain_pass(stack, losses, compiled(samples), labels, sample_weight, weight, bias, bounds, adds, loss, delta)


def softmax_grains(
    stack: Array,
    losses: Array,
    samples: Array,
    labels: Array,
    sample_weight: Array,
    weight: Array,
    bias: Array,
    bounds: Array,
    adds: Array,
) -> None:
    softmax_grain_pass(stack, losses, compiled(samples), labels, sample_weight, weight, bias, bounds, adds)


@kernel
def dense_grain_pass(
    stack: Array,
    losses: Array,
    samples: Array,
    labels: Array,
    sample_weight: Array,
    weight: Array,
    bias: Array,
    bounds: Array,
    adds: Array,
    loss: int,
    delta: float,
) -> None:
    if stack.shape[1] != weight.shape[0] + 1:
        raise ValueError("dense_grains: a row of the stack is not a weight and a bias")
    _check(stack, samples.shape[0], bounds, depth_and_left(adds)[0])
    top = 0
    for g in range(adds.shape[0]):
        lo, hi, row = bounds[g], bounds[g + 1], stack[top]
        losses[g] = dense_gradient(
            row[: weight.shape[0]],
            row[weight.shape[0] :],
            samples[lo:hi],
            labels[lo:hi],
            sample_weight[lo:hi],
            weight,
            bias,
            loss,
            delta,
        )
        top = fold(stack, top + 1, adds[g], stack.shape[1])


@kernel
def softmax_grain_pass(
    stack: Array,
    losses: Array,
    samples: Array,
    labels: Array,
    sample_weight: Array,
    weight: Array,
    bias: Array,
    bounds: Array,
    adds: Array,
) -> None:
    if stack.shape[1] != weight.size + bias.shape[0]:
        raise ValueError("softmax_grains: a row of the stack is not a weight and a bias")
    _check(stack, samples.shape[0], bounds, depth_and_left(adds)[0])
    losses[:] = 0
    pieces = _cut(bounds, adds)
    residual = np.empty((BLOCK + TILE_ROWS, bias.shape[0]), weight.dtype)
    first = top = 0
    while first < pieces.shape[0]:
        last = _end_of_block(pieces, first)
        _block_scores(residual, samples, weight, bias, pieces[first:last])
        at = 0
        for p in range(first, last):
            g, start, stop = pieces[p, 0], pieces[p, 1], pieces[p, 2]
            scores = residual[at : at + stop - start]
            losses[g] += softmax_residuals(scores, labels[start:stop], sample_weight[start:stop])
            at += _padded(stop - start)
        top = _push_block(stack, top, residual, samples, weight, pieces[first:last])
        first = last


@part
def _cut(bounds: Array, adds: Array) -> Array:
    """The grains, cut where they are longer than a block: rows of (grain, start, stop, whether it begins the grain, how
    many additions follow it; -1 where it does not end the grain)."""
    count = 0
    for g in range(adds.shape[0]):
        count += max(1, (bounds[g + 1] - bounds[g] + BLOCK - 1) // BLOCK)
    pieces = np.empty((count, 5), np.int64)
    count = 0
    for g in range(adds.shape[0]):
        start, end = bounds[g], bounds[g + 1]
        while True:
            stop = min(start + BLOCK, end)
            pieces[count, 0], pieces[count, 1], pieces[count, 2] = g, start, stop
            pieces[count, 3], pieces[count, 4] = start == bounds[g], adds[g] if stop == end else -1
            count += 1
            start = stop
            if start == end:
                break
    return pieces


@part
def _padded(samples: int) -> int:
    """The rows of whole tiles."""
    return (samples + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS


@part
def _end_of_block(pieces: Array, first: int) -> int:
    """As many pieces as fit a block, one at least."""
    rows, last = _padded(pieces[first, 2] - pieces[first, 1]), first + 1
    while last < pieces.shape[0] and rows + _padded(pieces[last, 2] - pieces[last, 1]) <= BLOCK:
        rows += _padded(pieces[last, 2] - pieces[last, 1])
        last += 1
    return last


@part
def _block_scores(scores: Array, samples: Array, weight: Array, bias: Array, pieces: Array) -> None:
    """The scores of several pieces, each in rows of whole tiles; a few rows of weights at a time meet all pieces."""
    for i in range(scores.shape[0]):
        for k in range(scores.shape[1]):
            scores[i, k] = bias[k]
    for lo in range(0, samples.shape[1], PANEL):
        hi = min(lo + PANEL, samples.shape[1])
        for k in range(0, weight.shape[0], CLASSES):
            at = 0
            for p in range(pieces.shape[0]):
                start, stop = pieces[p, 1], pieces[p, 2]
                into, x = scores[at : at + stop - start], samples[start:stop]
                for i in range(0, stop - start, TILE_ROWS):
                    add_scores(into, x, weight, i, k, lo, hi)
                at += _padded(stop - start)


@part
def _push_block(stack: Array, top: int, residual: Array, samples: Array, weight: Array, pieces: Array) -> int:
    """The gradients of several pieces; returns how many entries the stack has then.

    A few rows of the matrix at a time are set to 0, computed and added while they are in the first-level cache.
    """
    classes, features = weight.shape
    for lo in range(0, features, PANEL):
        hi = min(lo + PANEL, features)
        for k in range(0, classes, CLASSES):
            _push_tiles(stack, top, residual, samples, weight, pieces, k, lo, hi)
    at = 0
    for p in range(pieces.shape[0]):
        start, stop, is_first, adds = pieces[p, 1], pieces[p, 2], pieces[p, 3], pieces[p, 4]
        bias_gradient = stack[top, weight.size :]
        if is_first:
            bias_gradient[:] = 0
        for i in range(at, at + stop - start):
            add_row(bias_gradient, residual[i])
        at += _padded(stop - start)
        if adds >= 0:
            for c in range(adds):
                add_row(stack[top - c - 1, weight.size :], stack[top - c, weight.size :])
            top += 1 - adds
    return top


@part
def _push_tiles(
    stack: Array,
    top: int,
    residual: Array,
    samples: Array,
    weight: Array,
    pieces: Array,
    k: int,
    lo: int,
    hi: int,
) -> None:
    """The rows from k on, columns lo .. hi - 1, of the gradients of several pieces."""
    classes, features = weight.shape
    at = 0
    for p in range(pieces.shape[0]):
        start, stop, is_first, adds = pieces[p, 1], pieces[p, 2], pieces[p, 3], pieces[p, 4]
        gradient = stack[top, : weight.size].reshape(classes, features)
        if is_first:
            for j in range(k, min(k + CLASSES, classes)):
                gradient[j, lo:hi] = 0
        n = stop - start
        own, x = residual[at : at + _padded(n)], samples[start:stop]
        own[n:] = 0  # the rest of the last tile
        for i in range(0, n, TILE_ROWS):
            add_products(gradient, own, x, i, k, lo, hi)
        at += _padded(n)
        if adds >= 0:
            for c in range(adds):
                for j in range(k, min(k + CLASSES, classes)):
                    begin, end = j * features + lo, j * features + hi
                    add_row(stack[top - c - 1, begin:end], stack[top - c, begin:end])
            top += 1 - adds


@part
def _check(stack: Array, samples: int, bounds: Array, rows: int) -> None:
    if rows > stack.shape[0]:
        raise ValueError("tree: the stack has too few rows")
    wrong = bounds[0] != 0 or bounds[bounds.shape[0] - 1] != samples
    for g in range(bounds.shape[0] - 1):
        wrong |= bounds[g + 1] < bounds[g]
    if wrong:
        raise ValueError("grains: bounds must rise from 0 to the number of samples")


@kernel
def layer_grains(stack: Array, delta: Array, x: Array, bounds: Array, adds: Array, at: int) -> None:
    depth, left = depth_and_left(adds)
    _check(stack, x.shape[0], bounds, left)
    end = at + delta.shape[1] * x.shape[1]
    if at < 0 or end + delta.shape[1] > stack.shape[1]:
        raise ValueError("layer_grains: the layer does not fit a row of the stack")
    _add_columns(stack, delta, bounds, adds, depth, left, end)
    n, units, width = x.shape[0], delta.shape[1], COLUMN_BYTES // stack.itemsize
    factors = _packed_rows(delta)
    panel, sums = _aligned(n, width, stack.dtype), _aligned(depth, ROWS * width, stack.dtype)
    for column in range(0, x.shape[1], width):
        _pack_columns(panel, x, column)
        for unit in range(0, units, ROWS):
            _add_tile(sums, factors, panel, unit // ROWS * n, bounds, adds)
            _write_tile(stack, sums, left, at + unit * x.shape[1] + column, x.shape[1], units - unit, column)


@part
def _add_tile(sums: Array, factors: Array, panel: Array, first: int, bounds: Array, adds: Array) -> None:
    """One tile of all grains, added in tree order."""
    top = 0
    for g in range(adds.shape[0]):
        if adds[g] == 0:
            outer_products(sums, factors, panel, top, first, bounds[g], bounds[g + 1])
            top += 1
        else:
            add_outer_products(sums, factors, panel, top - 1, first, bounds[g], bounds[g + 1])
            top = fold(sums, top, adds[g] - 1, sums.shape[1])


@part
def _write_tile(stack: Array, sums: Array, left: int, at: int, features: int, units: int, column: int) -> None:
    """What of a tile belongs to the matrix, to the columns from ``at`` on of the first rows of the stack."""
    width = sums.shape[1] // ROWS
    size = min(width, features - column)
    for m in range(left):
        for r in range(min(ROWS, units)):
            start = at + r * features
            copy_into(stack[m, start : start + size], sums[m, r * width : r * width + size])


@part
def _packed_rows(delta: Array) -> Array:
    """delta (n, H) in strips of ROWS columns, one after the other; the last one filled up with 0."""
    n, units = delta.shape
    packed: Array = _aligned((units + ROWS - 1) // ROWS * n, ROWS, delta.dtype)
    for unit in range(0, units, ROWS):
        first, size = unit // ROWS * n, min(ROWS, units - unit)
        if size == ROWS:
            for i in range(n):
                for r in range(ROWS):
                    packed[first + i, r] = delta[i, unit + r]
        else:
            for i in range(n):
                packed[first + i, :] = 0
                for r in range(size):
                    packed[first + i, r] = delta[i, unit + r]
    return packed


@part
def _pack_columns(panel: Array, x: Array, column: int) -> None:
    """The columns of x (n, D) from ``column`` on, as many as the panel has; filled up with 0."""
    size = min(panel.shape[1], x.shape[1] - column)
    for i in range(x.shape[0]):
        copy_into(panel[i], x[i, column : column + size])
        panel[i, size:] = 0


@part
def _add_columns(stack: Array, delta: Array, bounds: Array, adds: Array, depth: int, left: int, at: int) -> None:
    """The column sums of delta, to the columns from ``at`` on."""
    sums = np.empty((depth, delta.shape[1]), stack.dtype)
    top = 0
    for g in range(adds.shape[0]):
        sums[top] = 0
        for i in range(bounds[g], bounds[g + 1]):
            add_row(sums[top], delta[i])
        top = fold(sums, top + 1, adds[g], sums.shape[1])
    for m in range(left):
        copy_into(stack[m, at : at + delta.shape[1]], sums[m])


@part
def _aligned(rows: int, columns: int, dtype: type) -> Array:
    """Memory that begins with a cache line."""
    room: Array = np.empty(rows * columns + LINE_BYTES, dtype)
    start = -room.ctypes.data % LINE_BYTES // room.itemsize
    memory: Array = room[start : start + rows * columns].reshape(rows, columns)
    return memory
