"""Rank and chunk arithmetic: pure functions of integers."""

from __future__ import annotations

from itertools import pairwise


def chunk_bounds(count: int, parts: int) -> list[int]:
    """Cut ``range(count)`` into ``parts`` contiguous chunks whose sizes differ by at most one.

    Returns ``parts + 1`` ascending bounds from 0 to ``count``; the longer chunks come first.

    >>> chunk_bounds(10, 4)
    [0, 3, 6, 8, 10]
    """
    short, longer = divmod(count, parts)
    return [part * short + min(part, longer) for part in range(parts + 1)]


def block_bounds(count: int, parts: int, block: int) -> list[int]:
    """The bounds of :func:`chunk_bounds`, but at multiples of ``block``; the first chunk is a longest one.

    >>> block_bounds(10, 3, 4)
    [0, 4, 8, 10]
    """
    return [min(bound * block, count) for bound in chunk_bounds(-(-count // block), parts)]


def chunk(count: int, parts: int, which: int) -> range:
    """The indices of chunk ``which`` of :func:`chunk_bounds`.

    >>> chunk(10, 4, 1)
    range(3, 6)
    """
    bounds = chunk_bounds(count, parts)
    return range(bounds[which], bounds[which + 1])


def proportional_bounds(count: int, shares: list[int]) -> list[int]:
    """Cut ``range(count)`` at the same fractions at which ``shares`` (ascending, from 0) cuts its last entry.

    A chunk gets at least ``(count // shares[-1])`` times its share, so that a data set of ``count`` samples
    gives every part of a batch of ``shares[-1]`` samples enough for ``count // shares[-1]`` batches.

    >>> proportional_bounds(11, [0, 2, 4, 5])
    [0, 4, 8, 11]
    """
    return [count * share // shares[-1] for share in shares]


def slices(bounds: list[int]) -> list[slice]:
    """The slices between neighbouring bounds."""
    return [slice(low, high) for low, high in pairwise(bounds)]


def right(rank: int, size: int) -> int:
    """The next rank on the ring."""
    return (rank + 1) % size


def left(rank: int, size: int) -> int:
    """The previous rank on the ring."""
    return (rank - 1) % size
