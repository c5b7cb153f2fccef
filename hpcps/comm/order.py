"""The order in which grains are added: a binary tree over their numbers, whoever owns them.

T(low, high) = T(low, low + p) + T(low + p, high), p the largest power of two below high - low. A worker owns
contiguous grains and adds up the largest subtrees that it owns whole, its *pieces*: O(log G) of them, one where the
worker count is a power of two that divides G. All pieces together are then added in tree order. So every addition is
one of the tree's, and the bits of the sum do not depend on who owns what.

Sums are written down for a stack: a leaf is pushed, then some number of times the two uppermost entries are replaced by
their sum, lower + upper. The kernels take such lists of numbers as ``adds``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


def pieces(low: int, high: int, total: int) -> list[range]:
    """The largest subtrees of T(0, total) within the grains low .. high - 1, in order.

    >>> pieces(3, 8, 12)
    [range(3, 4), range(4, 8)]
    """
    return _within(range(total), low, high)


def _within(node: range, low: int, high: int) -> list[range]:
    if high <= node.start or node.stop <= low:
        return []
    if low <= node.start and node.stop <= high:
        return [node]
    left, right = halves(node)
    return _within(left, low, high) + _within(right, low, high)


def halves(node: range) -> tuple[range, range]:
    """What a subtree of two grains or more is the sum of.

    >>> halves(range(8, 14))
    (range(8, 12), range(12, 14))
    """
    middle = node.start + (1 << (len(node) - 1).bit_length() - 1)
    return range(node.start, middle), range(middle, node.stop)


def adds_of(wanted: Sequence[range], leaves: Sequence[range]) -> list[int]:
    """How many additions follow the push of each leaf, so that the ``wanted`` subtrees are left on the stack.

    Both are subtrees in order; the leaves make up those wanted. Raises ValueError where they do not.

    >>> adds_of([range(0, 4)], [range(0, 2), range(2, 3), range(3, 4)])
    [0, 0, 2]
    """
    adds: list[int] = []

    def push(node: range) -> None:
        if len(adds) < len(leaves) and leaves[len(adds)] == node:
            adds.append(0)
            return
        if len(node) < 2:
            raise ValueError(f"the leaves {leaves} do not make up the sums {wanted}")
        for half in halves(node):
            push(half)
        adds[-1] += 1

    for node in wanted:
        push(node)
    if len(adds) < len(leaves):
        raise ValueError(f"the leaves {leaves} are more than the sums {wanted}")
    return adds


def depth(adds: Sequence[int]) -> int:
    """How many entries the stack holds at most.

    >>> depth([0, 1, 0, 2])
    3
    """
    held = most = 0
    for count in adds:
        most = max(most, held + 1)
        held += 1 - count
    return most


class Order(NamedTuple):
    """In which order the pieces of all workers are added: worker after worker, each one's pieces in order."""

    counts: list[int]
    """How many pieces each worker has"""
    adds: list[int]
    """How many additions follow the push of each piece; one sum is left"""

    def of_worker(self, worker: int) -> list[int]:
        """The additions that follow the pieces of one worker."""
        first = sum(self.counts[:worker])
        return self.adds[first : first + self.counts[worker]]


def order(ranges: Sequence[int]) -> Order:
    """The order of workers of which number w owns the grains ranges[w] .. ranges[w + 1] - 1.

    >>> order([0, 3, 6])
    Order(counts=[2, 2], adds=[0, 0, 2, 1])
    """
    total = ranges[-1]
    owned = [pieces(low, high, total) for low, high in pairwise(ranges)]
    leaves = [piece for own in owned for piece in own]
    return Order([len(own) for own in owned], adds_of([range(total)], leaves))


def in_turn(workers: int) -> Order:
    """The order of workers with one sum each that are added one after the other.

    >>> in_turn(3)
    Order(counts=[1, 1, 1], adds=[0, 1, 1])
    """
    return Order([1] * workers, [0] + [1] * (workers - 1))
