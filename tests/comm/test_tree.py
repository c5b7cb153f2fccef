"""Pieces of all ranks added in tree order, on threads."""

import hpcps_kernels
import numpy as np
import pytest

from hpcps.comm.order import halves, order, pieces
from hpcps.comm.topology import chunk_bounds
from hpcps.comm.tree import TreeAllreduce
from hpcps.errors import CommTimeout

KERNELS = hpcps_kernels.load("reference")


def sum_of(grains, node):
    if len(node) == 1:
        return grains[node.start]
    low, high = (sum_of(grains, half) for half in halves(node))
    return low + high


@pytest.mark.parametrize("ranks", range(1, 9))
@pytest.mark.parametrize("total", [8, 12, 13])
@pytest.mark.parametrize("small_bytes", [0, 1 << 20])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bits_of_the_tree_on_all_ranks(on_ranks, ranks, total, small_bytes, dtype):
    bounds = chunk_bounds(total, ranks)
    counts = (0, 1, ranks - 1, ranks, ranks + 1, 1001)
    rng = np.random.default_rng(ranks)
    rounds = [
        (n, (10.0 ** rng.integers(-4, 4, (total, n)) * rng.normal(size=(total, n))).astype(dtype)) for n in counts
    ]

    def body(transport):
        own = pieces(bounds[transport.rank], bounds[transport.rank + 1], total)
        sums = []
        for count, grains in rounds:
            way = TreeAllreduce(transport, order(bounds), count, dtype, KERNELS.sum_tree, small_bytes)
            for _ in range(2):  # one after the other, through the same memory
                mine = np.array([sum_of(grains, piece) for piece in own]).reshape(len(own), count)
                pending = way.start(mine)
                pending.wait()
                sums.append(mine[0].tobytes())
        return sums

    wanted = [sum_of(grains, range(total)).tobytes() for _, grains in rounds for _ in range(2)]
    for found in on_ranks(ranks, body):
        assert found == wanted


def test_pieces_may_lie_apart(on_ranks):
    """As a bucket of several pieces does: some columns of a matrix."""
    bounds = [0, 3, 8]
    grains = np.random.default_rng(0).normal(size=(8, 60)).astype(np.float32)

    def body(transport):
        own = pieces(bounds[transport.rank], bounds[transport.rank + 1], 8)
        whole = np.array([sum_of(grains, piece) for piece in own])
        for low, high in ((0, 20), (20, 60)):
            way = TreeAllreduce(transport, order(bounds), high - low, "float32", KERNELS.sum_tree, small_bytes=100)
            way.start(whole[:, low:high]).wait()
        return whole[0].tobytes()

    assert on_ranks(2, body) == [sum_of(grains, range(8)).tobytes()] * 2


def test_a_rank_that_does_not_come_ends_the_wait(on_ranks):
    def body(transport):
        way = TreeAllreduce(transport, order([0, 1, 2, 3]), 5, "float32", KERNELS.sum_tree)
        if transport.rank != 1:
            way.start(np.ones((1, 5), np.float32)).wait()

    _, errors = on_ranks.run(3, body, timeout_s=0.2)
    assert any(isinstance(error, CommTimeout) and "rank" in str(error) for error in errors)
