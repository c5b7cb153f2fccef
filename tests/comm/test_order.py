"""The order in which grains are added, against the recursion that defines it."""

import doctest
from itertools import pairwise

import numpy as np
import pytest

from hpcps.comm import order as module
from hpcps.comm.order import adds_of, depth, in_turn, order, pieces
from hpcps.comm.topology import chunk_bounds


def tree(low, high):
    """The definition, as nested pairs."""
    if high - low == 1:
        return low
    half = low + (high - low + 1) // 2
    return tree(low, half), tree(half, high)


def carry_out(adds, leaves, add=lambda low, high: (low, high)):
    """What is left on the stack."""
    stack = []
    for leaf, count in zip(leaves, adds, strict=True):
        stack.append(leaf)
        for _ in range(count):
            last = stack.pop()
            stack[-1] = add(stack[-1], last)
    return stack


def partitions(total):
    """Ways to cut the grains: evenly, and at random."""
    rng = np.random.default_rng(total)
    yield from (chunk_bounds(total, workers) for workers in range(1, total + 1))
    for _ in range(20):
        cuts = rng.choice(np.arange(1, total), rng.integers(0, total), replace=False) if total > 1 else []
        yield [0, *sorted(int(cut) for cut in cuts), total]


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("total", range(1, 34))
def test_pieces_and_their_order_make_the_tree_however_it_is_cut(total):
    for bounds in partitions(total):
        own = [pieces(low, high, total) for low, high in pairwise(bounds)]
        assert [grain for part in own for piece in part for grain in piece] == list(range(total))
        found = order(bounds)
        assert found.counts == [len(part) for part in own]
        assert [count for worker in range(len(own)) for count in found.of_worker(worker)] == found.adds
        leaves = []
        for part in own:
            grains = [range(grain, grain + 1) for piece in part for grain in piece]
            leaves += carry_out(adds_of(part, grains), [grain.start for grain in grains])
        assert carry_out(found.adds, leaves) == [tree(0, total)], bounds


@pytest.mark.parametrize("total", [1, 2, 7, 8, 12, 16, 31])
def test_the_bits_of_a_sum_do_not_depend_on_the_cut(total):
    rng = np.random.default_rng(total)
    numbers = (rng.normal(size=total) * 10.0 ** rng.integers(-6, 6, total)).astype(np.float32)

    def add(low, high):
        return low + high

    def value(node):
        return numbers[node] if isinstance(node, int) else value(node[0]) + value(node[1])

    for bounds in partitions(total):
        leaves = []
        for low, high in pairwise(bounds):
            grains = [range(grain, grain + 1) for grain in range(low, high)]
            leaves += carry_out(adds_of(pieces(low, high, total), grains), numbers[low:high], add)
        (found,) = carry_out(order(bounds).adds, leaves, add)
        assert found.tobytes() == value(tree(0, total)).tobytes()


@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16])
def test_a_power_of_two_that_divides_the_grains_makes_one_piece_each(workers):
    for total in (16, 32, 48, 80):
        assert order(chunk_bounds(total, workers)).counts == [1] * workers


@pytest.mark.parametrize("workers", [3, 5, 7, 100])
def test_pieces_are_few(workers):
    assert max(order(chunk_bounds(1000, workers)).counts) < 2 * 10


def test_a_stack_is_as_deep_as_needed():
    for total in range(1, 70):
        adds = order(list(range(total + 1))).adds
        held, most = 0, 0
        for count in adds:
            held += 1
            most = max(most, held)
            held -= count
        assert depth(adds) == most <= total.bit_length() + 1


def test_one_after_the_other():
    assert carry_out(in_turn(4).adds, [0, 1, 2, 3]) == [(((0, 1), 2), 3)]
    assert in_turn(1).adds == [0]


@pytest.mark.parametrize(
    ("wanted", "leaves"),
    [
        ([range(4)], [range(2)]),
        ([range(4)], [range(3), range(3, 4)]),
        ([range(2)], [range(2), range(2, 3)]),
        ([range(2)], [range(1, 3)]),
    ],
)
def test_leaves_that_do_not_make_up_the_sums_are_refused(wanted, leaves):
    with pytest.raises(ValueError, match="the leaves"):
        adds_of(wanted, leaves)
