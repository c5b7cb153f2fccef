"""Sums, products and maxima of flat buffers, in floating point and in fixed point, where a sum may take any order."""

from __future__ import annotations

import numpy as np

from hpcps_kernels.interface import Array

LANES = 32  # running sums of a dot product


def add_into(out: Array, x: Array) -> None:
    """out += x; both (n,) of one dtype: float32, float64 or int64."""
    out += x


def max_abs(x: Array) -> float:
    """The largest magnitude in x (n,) F: 0 where x is empty, inf if it holds one, nan if it holds any."""
    return float(np.max(np.abs(x), initial=0.0))


def add_fixed(out: Array, x: Array, scale: float) -> None:
    """out += rint(x * scale), the product and its rounding (half to even) in float64; out (n,) int64, x (n,)
    F.

    The caller chooses scale so that nothing leaves int64.
    """
    out += np.rint(x.astype(np.float64) * scale).astype(np.int64)


def from_fixed(out: Array, x: Array, scale: float) -> None:
    """out = x * scale, computed in float64 and then rounded to F; out (n,) F is overwritten, x (n,) int64."""
    out[:] = x.astype(np.float64) * scale


def sum_into(out: Array, xs: Array) -> None:
    """out = xs[0] + xs[1] + ..., added in this order, as `add_into` one after the other would; 0 where P is 0.

    out (n,) is overwritten, xs (P, n), both of one dtype: float32, float64 or int64 (which wraps round).
    """
    out[:] = xs[0] if len(xs) else 0
    for x in xs[1:]:
        out += x


def sum_tree(out: Array, xs: Array, rows: Array, adds: Array) -> None:
    """Sums of rows of xs in the order of a tree: for p = 0, 1, ... row rows[p] is pushed on a stack, then adds[p] times
    the two uppermost entries are replaced by their sum, lower + upper. What is left, M arrays, overwrites out.

    out (M, n), xs (R, n), both of one dtype: float32, float64 or int64; rows, adds (P,) int64. Raises ValueError where
    the adds do not leave M, IndexError for a row outside 0..R-1.
    """
    if len(rows) and (rows.min() < 0 or rows.max() >= len(xs)):
        raise IndexError("sum_tree: a row is outside 0..R-1")
    if depth_and_left(adds)[1] != len(out):
        raise ValueError("sum_tree: the adds leave another number of sums than out has rows")
    sums: list[Array] = []
    for row, count in zip(rows, adds, strict=True):
        sums.append(xs[row])
        for _ in range(count):
            last = sums.pop()
            sums[-1] = sums[-1] + last
    for place, one in zip(out, sums, strict=True):
        place[:] = one


def depth_and_left(adds: Array) -> tuple[int, int]:
    """How many entries a stack needs for these adds, and how many are left. Raises ValueError for adds below 0, or of
    what is not on the stack."""
    depth = left = 0
    for count in adds:
        left += 1
        depth = max(depth, left)
        if not 0 <= count < left:
            raise ValueError("tree: adds of what is not on the stack")
        left -= int(count)
    return depth, left


def axpy(out: Array, x: Array, a: float) -> None:
    """out += a * x, a rounded to F and the product rounded before it is added; out, x (n,) F."""
    out += out.dtype.type(a) * x


def dot(x: Array, y: Array) -> float:
    """The sum of x * y, products and sums in float64; x, y (n,) F. A nan or inf in either reaches the result.

    Element i is added to lane i modulo 32, in ascending order; then the upper half of the lanes is added to
    the lower half until one is left. The bits do not depend on the CPU.
    """
    products = np.zeros(-(-len(x) // LANES) * LANES)
    products[: len(x)] = x.astype(np.float64) * y.astype(np.float64)
    lanes = np.zeros(LANES)
    for row in products.reshape(-1, LANES):
        lanes += row
    while len(lanes) > 1:
        lower, upper = np.split(lanes, 2)
        lanes = lower + upper
    return float(lanes[0])


def square_norm(x: Array) -> float:
    """The sum of x^2 in float64, as `dot`; x (n,) F."""
    return dot(x, x)
