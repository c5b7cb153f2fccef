"""Collectives on threads: every chunk in its place, the same bits on all ranks, closed-form totals."""

import numpy as np
import pytest

import hpcps
from hpcps.comm import ring
from hpcps.comm.topology import chunk_bounds

SIZES = [0, 1, 2, 7, 8, 9, 63, 64, 65, 1000, 4099]
RANKS = range(1, 9)
DTYPES = ["float32", "float64", "int64"]


def add_into(out, x):
    out += x


def values(count, ranks, rank, dtype):
    """j * P + rank: no two ranks, and no two places, hold the same."""
    return (np.arange(count) * ranks + rank).astype(dtype)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_allreduce(on_ranks, ranks, dtype):
    def body(transport):
        found = []
        for count in SIZES:
            x = values(count, ranks, transport.rank, dtype)
            ring.allreduce(transport, x, add_into)
            found.append(x)
        return found

    for results in zip(*on_ranks(ranks, body), strict=True):
        count = len(results[0])
        total = np.arange(count) * ranks * ranks + ranks * (ranks - 1) // 2
        for result in results:
            assert np.array_equal(result, total.astype(dtype))


@pytest.mark.parametrize("ranks", RANKS)
def test_all_ranks_get_the_same_bits_where_addition_rounds(on_ranks, ranks):
    def body(transport):
        x = np.random.default_rng(transport.rank).normal(size=1001).astype(np.float32)
        ring.allreduce(transport, x, add_into)
        return x.tobytes()

    assert len(set(on_ranks(ranks, body))) == 1


@pytest.mark.parametrize("ranks", RANKS)
def test_reduce_scatter_leaves_each_rank_its_chunk(on_ranks, ranks):
    def body(transport):
        x = values(101, ranks, transport.rank, "float64")
        own = ring.reduce_scatter(transport, x, add_into)
        return own, x[own]

    total = np.arange(101) * ranks * ranks + ranks * (ranks - 1) // 2
    found = on_ranks(ranks, body)
    assert [own.start for own, _ in found] == chunk_bounds(101, ranks)[:-1]
    for own, x in found:
        assert np.array_equal(x, total[own])


@pytest.mark.parametrize("ranks", RANKS)
def test_all_gather_with_uneven_and_empty_chunks(on_ranks, ranks):
    bounds = [rank * rank for rank in range(ranks + 1)]

    def body(transport):
        x = np.full(bounds[-1], -1)
        low, high = bounds[transport.rank], bounds[transport.rank + 1]
        x[low:high] = np.arange(low, high)
        ring.all_gather(transport, x, bounds)
        return x

    for x in on_ranks(ranks, body):
        assert np.array_equal(x, np.arange(bounds[-1]))


def test_work_between_start_and_wait(on_ranks):
    def body(transport):
        x = np.full(10, float(transport.rank))
        pending = ring.Pending(transport, ring.allreduce_steps(transport, x, add_into))
        work = sum(range(100))
        pending.wait()
        pending.wait()
        return work, x

    for work, x in on_ranks(3, body):
        assert work == 4950
        assert np.array_equal(x, np.full(10, 3.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_callers_array_of_any_shape_and_strides(on_ranks, dtype):
    def body(transport):
        whole = np.ones((6, 8), dtype)
        view = whole[::2, 1::3]
        assert hpcps.allreduce(view, transport) is view
        return whole

    expected = np.ones((6, 8), dtype)
    expected[::2, 1::3] = 3
    for whole in on_ranks(3, body):
        assert np.array_equal(whole, expected)


def test_allreduce_alone_and_what_it_refuses(on_ranks):
    [x] = on_ranks(1, lambda transport: hpcps.allreduce(np.ones(3), transport))
    assert np.array_equal(x, np.ones(3))
    with pytest.raises(TypeError, match="complex128"):
        on_ranks(1, lambda transport: hpcps.allreduce(np.ones(3, complex), transport))
    frozen = np.ones(3)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        on_ranks(1, lambda transport: hpcps.allreduce(frozen, transport))
