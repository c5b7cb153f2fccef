"""Gradients of several grains in one call, added in tree order while they are in cache."""

from __future__ import annotations

import numpy as np

from hpcps_kernels.cpu._gemm_tiles import COLUMN_BYTES, ROWS, STORED, added, copy_columns
from hpcps_kernels.cpu._grain_tiles import push_products
from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.cpu._memory import LINE_BYTES, address_of, aligned
from hpcps_kernels.cpu._tiles import CLASSES
from hpcps_kernels.cpu._tree import add_row, copy_into, depth_and_left, fold
from hpcps_kernels.cpu.gemm import pack, rows_of_tiles, share_sets, tile_of
from hpcps_kernels.cpu.gradient import BLOCK, compiled, dense_gradient, scores_of
from hpcps_kernels.cpu.loss import softmax_residuals
from hpcps_kernels.interface import Array

SAMPLES_VALUES = 4096  # of a grain, so many columns that its samples stay in the first-level cache between classes


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
    top, gradient = 0, np.empty(stack.shape[1], stack.dtype)
    for g in range(adds.shape[0]):
        lo, hi = bounds[g], bounds[g + 1]
        losses[g] = dense_gradient(
            gradient[: weight.shape[0]],
            gradient[weight.shape[0] :],
            samples[lo:hi],
            labels[lo:hi],
            sample_weight[lo:hi],
            weight,
            bias,
            loss,
            delta,
        )
        if adds[g] == 0:
            copy_into(stack[top], gradient)
            top += 1
        else:
            add_row(stack[top - 1], gradient)
            top = fold(stack, top, adds[g] - 1, stack.shape[1])


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
    residual = np.empty((BLOCK, bias.shape[0]), weight.dtype)
    first = top = 0
    while first < pieces.shape[0]:
        last = _end_of_block(pieces, first)
        begin, end = pieces[first, 1], pieces[last - 1, 2]
        scores_of(residual[: end - begin], samples[begin:end], weight, bias)
        for p in range(first, last):
            g, start, stop = pieces[p, 0], pieces[p, 1], pieces[p, 2]
            scores = residual[start - begin : stop - begin]
            losses[g] += softmax_residuals(scores, labels[start:stop], sample_weight[start:stop])
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
def _end_of_block(pieces: Array, first: int) -> int:
    """As many pieces as fit a block, one at least."""
    last = first + 1
    while last < pieces.shape[0] and pieces[last, 2] - pieces[first, 1] <= BLOCK:
        last += 1
    return last


@part
def _push_block(stack: Array, top: int, residual: Array, samples: Array, weight: Array, pieces: Array) -> int:
    """The gradients of several pieces; returns how many entries the stack has then."""
    classes, features = weight.shape
    for p in range(pieces.shape[0]):
        at = pieces[p, 1] - pieces[0, 1]
        start, stop, is_first, adds = pieces[p, 1], pieces[p, 2], pieces[p, 3], pieces[p, 4]
        to, is_added = (top - 1, 1) if adds > 0 else (top, 0)
        begin = to if is_first else top
        width = max(LINE_BYTES, SAMPLES_VALUES // max(stop - start, 1) // LINE_BYTES * LINE_BYTES)
        for lo in range(0, features, width):
            hi = min(lo + width, features)
            for k in range(0, classes, CLASSES):
                push_products(stack, residual, samples, k, lo, hi, at, start, stop, begin, is_first, to, is_added)
        _push_bias(stack, residual, at, stop - start, weight.size, begin, is_first, to, is_added)
        if adds > 0:
            top = fold(stack, top, adds - 1, stack.shape[1])
        elif adds == 0:
            top += 1
    return top


@part
def _push_bias(
    stack: Array, residual: Array, first: int, n: int, at: int, begin: int, is_fresh: int, to: int, is_added: int
) -> None:
    """As `push_products` with samples that are all 1, in the columns from ``at`` on."""
    for k in range(residual.shape[1]):
        total = stack.dtype.type(0) if is_fresh else stack[begin, at + k]
        for i in range(first, first + n):
            total += residual[i, k]
        stack[to, at + k] = stack[to, at + k] + total if is_added else total


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
    panel, sums = aligned(n * width, stack), aligned(depth * ROWS * width, stack).reshape(depth, ROWS * width)
    rows, own = rows_of_tiles(units), _spaced(delta)
    for column in range(0, x.shape[1], width):
        size = min(width, x.shape[1] - column)
        pack(panel, address_of(panel), address_of(x) + column * x.itemsize, x.strides[0], x.itemsize, n, size)
        for first in range(0, units, rows):
            unit = min(first, units - rows)  # the last tile overlaps the one before: the same numbers are written again
            _add_tile(sums, rows, own, unit, panel, bounds, adds)
            _write_tile(stack, sums, left, at + unit * x.shape[1] + column, x.shape[1], rows, size)


@part
def _spaced(delta: Array) -> Array:
    """delta, or, where its rows fall into the same few sets of the first-level cache, a copy with rows of an odd number
    of lines."""
    n, units = delta.shape
    if not share_sets(delta.strides[0], n):
        return delta
    spaced = np.empty((n, units + LINE_BYTES // delta.itemsize), delta.dtype)
    for i in range(n):
        copy_into(spaced[i], delta[i])
    return spaced


@part
def _add_tile(sums: Array, rows: int, delta: Array, unit: int, panel: Array, bounds: Array, adds: Array) -> None:
    """One tile of all grains, added in tree order: ``rows`` units from ``unit`` on by the columns of the panel."""
    top, step, size = 0, delta.strides[0], rows * COLUMN_BYTES // sums.itemsize
    for g in range(adds.shape[0]):
        count, left = bounds[g + 1] - bounds[g], address_of(delta) + bounds[g] * step + unit * delta.itemsize
        right = address_of(panel) + bounds[g] * COLUMN_BYTES
        if adds[g] > 0 and rows == ROWS:
            added(sums, address_of(sums[top - 1]), COLUMN_BYTES, left, delta.itemsize, step, right, count, 0)
            top = fold(sums, top, adds[g] - 1, size)
        else:
            to = address_of(sums[top])
            tile_of(sums, STORED, rows, to, COLUMN_BYTES, left, delta.itemsize, step, right, count, 0)
            top = fold(sums, top + 1, adds[g], size)


@part
def _write_tile(stack: Array, sums: Array, left: int, at: int, features: int, rows: int, size: int) -> None:
    """A tile's first ``size`` columns, to the columns from ``at`` on of the first rows of the stack."""
    width = sums.shape[1] // ROWS
    for m in range(left):
        for r in range(rows):
            start = at + r * features
            if size == width:
                copy_columns(
                    stack, address_of(stack[m]) + start * stack.itemsize, address_of(sums[m]) + r * COLUMN_BYTES
                )
            else:
                copy_into(stack[m, start : start + size], sums[m, r * width : r * width + size])


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
