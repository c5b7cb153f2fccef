"""Sums in tree order, as a stack machine: an entry is pushed, then the two uppermost are replaced by their sum."""

from __future__ import annotations

from hpcps_kernels.cpu._jit import part
from hpcps_kernels.interface import Array


@part
def depth_and_left(adds: Array) -> tuple[int, int]:
    """As the reference's in reduce.py."""
    depth, left = 0, 0
    for g in range(adds.shape[0]):
        left += 1
        depth = max(depth, left)
        if adds[g] < 0 or adds[g] >= left:
            raise ValueError("tree: adds of what is not on the stack")
        left -= adds[g]
    return depth, left


@part
def fold(stack: Array, top: int, count: int, size: int) -> int:
    """Add ``count`` times the uppermost of the ``top`` entries to the one below, up to column ``size``; returns how
    many entries are left."""
    for _ in range(count):
        top -= 1
        add_row(stack[top - 1], stack[top, :size])
    return top


@part
def add_row(out: Array, x: Array) -> None:
    """Add x to the beginning of out."""
    for i in range(x.shape[0]):
        out[i] += x[i]


@part
def copy_into(out: Array, x: Array) -> None:
    """Copy x to the beginning of out."""
    for i in range(x.shape[0]):
        out[i] = x[i]
