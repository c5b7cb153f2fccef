"""Sums, products and maxima of flat buffers, in floating point and in fixed point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hpcps_kernels.gpu._launch import FLOATS, THREADS, Launch, device, one_each, strides
from hpcps_kernels.gpu._told import Told
from hpcps_kernels.reference.reduce import depth_and_left

SHARE = 16 * THREADS  # elements of a block at least, of a sum over all
SHARES = 2048  # blocks at most
CHUNKS = 64  # of rows at most, of which column sums are made side by side

_A, _T = {"A": (*FLOATS, "i64")}, {"T": FLOATS}
_WIDE = strides(4 * THREADS)
ADD_INTO = Launch("reduce", "add_into", "A *, const A *, i64", _WIDE, _A)
AXPY = Launch("reduce", "axpy", "T *, const T *, i64, double", _WIDE, _T)
SUM_INTO = Launch("reduce", "sum_into", "A *, const A *, i64, i64", strides(2 * THREADS), _A)
SUM_TREE = Launch(
    "reduce", "sum_tree", "A *, i64, A *, const A *, i64, const i64 *, i64, const i64 *, i64", strides(THREADS), _A
)
ADD_FIXED = Launch("reduce", "add_fixed", "i64 *, const T *, i64, double", _WIDE, _T)
FROM_FIXED = Launch("reduce", "from_fixed", "T *, const i64 *, i64, double", _WIDE, _T)
DOT = Launch("reduce", "dot", "double *, const T *, const T *, i64", one_each, _T)
MAX_ABS = Launch("reduce", "max_abs", "double *, const T *, i64", one_each, _T)
COUNT_NOT_FINITE = Launch("reduce", "count_not_finite", "double *, const T *, i64", one_each, _T)
SUM_COLUMNS = Launch("reduce", "sum_columns", "T *, const T *, i64, i64, i64, i64", one_each, _T)
FOLD_PARTS = Launch(
    "reduce", "fold_parts", "double *, const double *, i64", one_each, {"Fold": ("Plus", "Largest")}, 1024
)


def add_into(out: Any, x: Any) -> None:
    ADD_INTO(out.size, out, x, out.size, A=out.dtype)


def axpy(out: Any, x: Any, a: float) -> None:
    AXPY(out.size, out, x, out.size, a, T=out.dtype)


def sum_into(out: Any, xs: Any) -> None:
    SUM_INTO(out.size, out, xs, xs.shape[0], out.size, A=out.dtype)


def sum_tree(out: Any, xs: Any, rows: Any, adds: Any) -> None:
    told = Told()
    told.numbers_below(rows, xs.shape[0])
    told.sum(IndexError("sum_tree: a row is outside 0..R-1"))
    depth, left = depth_and_left(device().read(adds))
    if left != out.shape[0]:
        raise ValueError("sum_tree: the adds leave another number of sums than out has rows")
    fold_rows(out.reshape(-1), out.shape[1], xs, rows, adds, depth)


def fold_rows(out: Any, pitch: int, xs: Any, rows: Any, adds: Any, depth: int) -> None:
    """Rows of xs added up as a stack machine says that needs ``depth`` entries, into rows of a flat out. ``rows`` None:
    all rows in their order."""
    n = xs.shape[1]
    stack = device().empty(max(depth - 1, 0) * n, xs.dtype)
    numbered, numbers = (0, adds) if rows is None else (1, rows)
    SUM_TREE(n, out, pitch, stack, xs, n, numbers, numbered, adds, adds.size, A=xs.dtype)


def sum_columns(out: Any, xs: Any) -> None:
    """out (n,) = the sum of the rows of xs (P, n), in an order of its own that is faster than `sum_into`'s."""

    def launch(grid: ColumnGrid, sums: Any) -> None:
        SUM_COLUMNS(grid.blocks, sums, xs, *xs.shape, grid.lanes, grid.chunk, T=out.dtype)

    rows, n = xs.shape
    by_columns(out, rows, n, launch)


class ColumnGrid(NamedTuple):
    """How the blocks of column sums share out a matrix."""

    blocks: int
    lanes: int  # columns of a block
    chunk: int  # rows of a block


def by_columns(out: Any, rows: int, n: int, launch: Callable[[ColumnGrid, Any], None]) -> None:
    """Launch what sums up columns of (rows, n) by chunks of rows, and add up the chunks into out (n,)."""
    if n == 0:
        return
    lanes = lanes_for(n)
    chunks = max(1, min(CHUNKS, rows * lanes // SHARE))
    grid = ColumnGrid(-(-n // lanes) * chunks, lanes, -(-rows // chunks))
    if chunks == 1:
        launch(grid, out)
        return
    sums = device().empty((chunks, n), out.dtype)
    launch(grid, sums)
    SUM_COLUMNS(grid.blocks // chunks, out, sums, chunks, n, lanes, chunks, T=out.dtype)


def lanes_for(length: int) -> int:
    """How many neighbouring threads go through so many numbers: a power of two, of a warp at most."""
    return min(32, 1 << max(length - 1, 0).bit_length())


def dot(x: Any, y: Any) -> float:
    return _folded(DOT, "Plus", x, y)


def square_norm(x: Any) -> float:
    return _folded(DOT, "Plus", x, x)


def max_abs(x: Any) -> float:
    return _folded(MAX_ABS, "Largest", x)


def all_finite(x: Any) -> bool:
    return _folded(COUNT_NOT_FINITE, "Plus", x) == 0


def add_fixed(out: Any, x: Any, scale: float) -> None:
    ADD_FIXED(out.size, out, x, out.size, scale, T=x.dtype)


def from_fixed(out: Any, x: Any, scale: float) -> None:
    FROM_FIXED(out.size, out, x, out.size, scale, T=out.dtype)


def shares(n: int) -> int:
    """Blocks that a sum over n elements is shared out to: a function of n alone, so that its order is, too."""
    return min(-(-n // SHARE), SHARES)


def fold_parts(told: Told, parts: Any, how: str = "Plus") -> None:
    """The blocks' shares, added up into what is told."""
    FOLD_PARTS(1, told.array, parts, parts.size, Fold=how)


def _folded(shared: Launch, how: str, *arrays: Any) -> float:
    told, x = Told(), arrays[0]
    parts = device().empty(shares(x.size), "float64")
    shared(parts.size, parts, *arrays, x.size, T=x.dtype)
    fold_parts(told, parts, how)
    return told.sum(AssertionError())
