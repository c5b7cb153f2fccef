"""Sums, products and maxima of flat buffers: each bound by memory."""

from __future__ import annotations

import numpy as np

from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.cpu._lanes import sum_of_products
from hpcps_kernels.cpu._tree import add_row, copy_into, depth_and_left, fold
from hpcps_kernels.interface import Array

PANEL = 2048  # elements of a sum that stay in the first-level cache
TREE_PANEL = 1024  # the same of each of a tree's open sums


@kernel
def add_into(out: Array, x: Array) -> None:
    for i in range(out.shape[0]):
        out[i] += x[i]


@kernel
def sum_into(out: Array, xs: Array) -> None:
    if xs.shape[0] == 0:
        out[:] = 0
        return
    x, n, count = xs.reshape(xs.size), np.uintp(xs.shape[1]), xs.shape[0]
    beginning = (count - 1) % 4 + 1  # the first 1 to 4 rows, then 4 at a time, so that the sum is seldom loaded
    for start in range(0, out.shape[0], PANEL):
        lo, hi = np.uintp(start), np.uintp(min(start + PANEL, out.shape[0]))
        for i in range(lo, hi):
            out[i] = x[i]
        for p in range(1, beginning):
            _add_row(out, x, np.uintp(p) * n, lo, hi)
        for p in range(beginning, count, 4):
            _add_four_rows(out, x, np.uintp(p) * n, n, lo, hi)


@part
def _add_row(out: Array, x: Array, row: int, lo: int, hi: int) -> None:
    for i in range(lo, hi):
        out[i] += x[row + i]


@part
def _add_four_rows(out: Array, x: Array, row: int, n: int, lo: int, hi: int) -> None:
    second, third, fourth = row + n, row + n + n, row + n + n + n
    for i in range(lo, hi):
        out[i] = out[i] + x[row + i] + x[second + i] + x[third + i] + x[fourth + i]


@kernel
def sum_tree(out: Array, xs: Array, rows: Array, adds: Array) -> None:
    depth, left = depth_and_left(adds)
    if left != out.shape[0]:
        raise ValueError("sum_tree: the adds leave another number of sums than out has rows")
    for p in range(rows.shape[0]):
        if rows[p] < 0 or rows[p] >= xs.shape[0]:
            raise IndexError("sum_tree: a row is outside 0..R-1")
    stack = np.empty((depth, TREE_PANEL), out.dtype)
    for start in range(0, out.shape[1], TREE_PANEL):
        size = min(TREE_PANEL, out.shape[1] - start)
        top = 0
        for p in range(rows.shape[0]):
            x = xs[rows[p], start : start + size]
            count = adds[p]
            if count == 0:
                copy_into(stack[top], x)
                top += 1
            else:  # added where it lies
                add_row(stack[top - 1], x)
                top = fold(stack, top, count - 1, size)
        for m in range(left):
            copy_into(out[m, start : start + size], stack[m, :size])


@kernel
def axpy(out: Array, x: Array, a: float) -> None:
    factor = out.dtype.type(a)
    for i in range(out.shape[0]):
        out[i] += factor * x[i]


@kernel
def dot(x: Array, y: Array) -> float:
    return float(sum_of_products(x, y))


@kernel
def square_norm(x: Array) -> float:
    return float(sum_of_products(x, x))


def max_abs(x: Array) -> float:
    bits = x.view(f"i{x.itemsize}")
    largest = np.zeros(1, bits.dtype)
    max_magnitude(largest, bits)
    return float(largest.view(x.dtype)[0])


@kernel
def max_magnitude(out: Array, bits: Array) -> None:
    # Without their sign, floats sort as the integers of the same bits, inf above all numbers and nan above
    # inf.
    magnitude = out.dtype.type(np.iinfo(out.dtype).max)
    largest = out[0]
    for i in range(bits.shape[0]):
        largest = max(largest, bits[i] & magnitude)
    out[0] = largest


@kernel
def add_fixed(out: Array, x: Array, scale: float) -> None:
    for i in range(out.shape[0]):
        out[i] += np.int64(np.rint(np.float64(x[i]) * scale))


@kernel
def from_fixed(out: Array, x: Array, scale: float) -> None:
    for i in range(out.shape[0]):
        out[i] = np.float64(x[i]) * scale
