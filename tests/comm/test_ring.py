"""Collectives on threads: every chunk in its place, the same bits on all ranks, closed-form totals."""

import time

import numpy as np
import pytest

import hpcps
from hpcps.comm import doubling, ring
from hpcps.comm.meeting import Meeting
from hpcps.comm.pending import Pending
from hpcps.comm.topology import chunk_bounds
from hpcps.comm.transport import COLLECTIVE_TAGS
from hpcps.errors import CommTimeout

SIZES = [0, 1, 2, 7, 8, 9, 63, 64, 65, 1000, 4099]
RANKS = range(1, 9)
DTYPES = ["float32", "float64", "int64"]
SEGMENTS_BYTES = [1, 24, 8 * 64, ring.SEGMENT_BYTES]
"""Less than an element, some elements, a chunk or so, more than all."""


def add_into(out, x):
    out += x


def values(count, ranks, rank, dtype):
    """j * P + rank: no two ranks, and no two places, hold the same."""
    return (np.arange(count) * ranks + rank).astype(dtype)


def total(count, ranks, dtype="int64"):
    return (np.arange(count) * ranks * ranks + ranks * (ranks - 1) // 2).astype(dtype)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("segment_bytes", SEGMENTS_BYTES)
def test_allreduce(on_ranks, ranks, dtype, segment_bytes):
    sizes = SIZES if segment_bytes >= 512 else [size for size in SIZES if size < 200]

    def body(transport):
        found = []
        for count in sizes:
            x = values(count, ranks, transport.rank, dtype)
            ring.allreduce(transport, x, add_into, segment_bytes)
            found.append(x)
        return found

    for count, results in zip(sizes, zip(*on_ranks(ranks, body), strict=True), strict=True):
        for result in results:
            assert np.array_equal(result, total(count, ranks, dtype))


@pytest.mark.parametrize("ranks", RANKS)
def test_all_ranks_get_the_same_bits_where_addition_rounds_whatever_the_segments(on_ranks, ranks):
    def body(transport):
        found = []
        for segment_bytes in SEGMENTS_BYTES[1:]:
            x = np.random.default_rng(transport.rank).normal(size=1001).astype(np.float32)
            ring.allreduce(transport, x, add_into, segment_bytes)
            found.append(x.tobytes())
        return found

    assert len({bits for found in on_ranks(ranks, body) for bits in found}) == 1


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("segment_bytes", [24, ring.SEGMENT_BYTES])
def test_reduce_scatter_leaves_each_rank_its_chunk(on_ranks, ranks, segment_bytes):
    def body(transport):
        x = values(101, ranks, transport.rank, "float64")
        own = ring.reduce_scatter(transport, x, add_into, segment_bytes=segment_bytes)
        return own, x[own]

    found = on_ranks(ranks, body)
    assert [own.start for own, _ in found] == chunk_bounds(101, ranks)[:-1]
    for own, x in found:
        assert np.array_equal(x, total(101, ranks)[own])


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("segment_bytes", [24, ring.SEGMENT_BYTES])
def test_all_gather_with_uneven_and_empty_chunks(on_ranks, ranks, segment_bytes):
    bounds = [rank * rank for rank in range(ranks + 1)]

    def body(transport):
        x = np.full(bounds[-1], -1)
        low, high = bounds[transport.rank], bounds[transport.rank + 1]
        x[low:high] = np.arange(low, high)
        ring.all_gather(transport, x, bounds, segment_bytes)
        return x

    for x in on_ranks(ranks, body):
        assert np.array_equal(x, np.arange(bounds[-1]))


@pytest.mark.parametrize("ranks", RANKS)
def test_any_chunks_segments_and_lookahead_come_to_an_end(on_ranks, ranks, monkeypatch):
    """Most chunks empty, all in one, some long: reduce-scatter, then all-gather, then both in one stream."""
    rng = np.random.default_rng(ranks)
    for ahead in (1, 2, 3, 8):
        monkeypatch.setattr(ring, "AHEAD", ahead)
        for _ in range(4):
            lengths = rng.integers(0, 12, ranks) * rng.integers(0, 2, ranks)
            bounds = [0, *np.cumsum(lengths).tolist()]
            segment_bytes = int(rng.integers(1, 5)) * 8

            def body(transport, bounds=bounds, segment_bytes=segment_bytes):
                x = values(bounds[-1], ranks, transport.rank, "int64")
                y = x.copy()
                ring.reduce_scatter(transport, x, add_into, bounds, segment_bytes)
                ring.all_gather(transport, x, bounds, segment_bytes)
                ring.allreduce(transport, y, add_into, segment_bytes)
                return x, y

            for x, y in on_ranks(ranks, body):
                assert np.array_equal(x, total(bounds[-1], ranks))
                assert np.array_equal(y, total(bounds[-1], ranks))


def test_work_between_start_and_wait(on_ranks):
    def body(transport):
        x = np.full(10, float(transport.rank))
        pending = Pending(transport, ring.allreduce_steps(transport, x, add_into))
        work = sum(range(100))
        pending.wait()
        pending.wait()
        assert pending.done()
        return work, x

    for work, x in on_ranks(3, body):
        assert work == 4950
        assert np.array_equal(x, np.full(10, 3.0))


@pytest.mark.parametrize("ranks", RANKS)
def test_asking_alone_takes_a_collective_to_its_end(on_ranks, ranks):
    def body(transport):
        x = values(100, ranks, transport.rank, "int64")
        pending = ring.RingAllreduce(transport, add_into, segment_bytes=64).start(x)
        while not pending.done():
            time.sleep(0)  # another thread's turn
        assert not transport.in_flight
        return x

    for x in on_ranks(ranks, body):
        assert np.array_equal(x, total(100, ranks))


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("algorithm", [ring.RingAllreduce, doubling.DoublingAllreduce])
@pytest.mark.parametrize("asks", [False, True])
def test_several_on_their_way_are_waited_for_in_another_order_on_each_rank(on_ranks, ranks, algorithm, asks):
    counts = [1000, 3, 0, 400, 1, 77]

    def body(transport):
        ways = [algorithm(one, add_into) for one in (transport, transport.group(range(ranks)[::-1]))]
        arrays = [values(count, ranks, transport.rank, "int64") for count in counts]
        tickets = [ways[number % 2].start(x) for number, x in enumerate(arrays)]
        for number in np.random.default_rng(transport.rank).permutation(len(counts)):
            while asks and transport.rank % 2 and not tickets[number].done():
                time.sleep(0)  # another thread's turn
            tickets[number].wait()
            assert np.array_equal(arrays[number], total(counts[number], ranks))
        assert not transport.in_flight

    on_ranks(ranks, body)


def test_a_collective_that_blocks_takes_those_on_their_way_along(on_ranks):
    def body(transport):
        x = values(1000, 3, transport.rank, "int64")
        pending = ring.RingAllreduce(transport, add_into, segment_bytes=64).start(x)
        if transport.rank == 0:
            pending.wait()
        gathered = Meeting(transport).gather(np.array([transport.rank]))
        pending.wait()
        return gathered.tolist(), x

    for gathered, x in on_ranks(3, body):
        assert gathered == [0, 1, 2]
        assert np.array_equal(x, total(1000, 3))


def test_tags_are_taken_when_a_collective_is_made_and_come_round_again(on_ranks):
    def body(transport):
        transport._collectives = len(COLLECTIVE_TAGS) - 1
        arrays = [np.full(9, float(transport.rank + number)) for number in range(3)]
        steps = [ring.allreduce_steps(transport, x, add_into) for x in arrays]
        order = [0, 1, 2] if transport.rank else [2, 0, 1]
        tickets = [Pending(transport, steps[number]) for number in order]
        for ticket in tickets:
            ticket.wait()
        return [x.tolist() for x in arrays]

    assert on_ranks(2, body) == [[[1.0] * 9, [3.0] * 9, [5.0] * 9]] * 2


@pytest.mark.parametrize("others", [0, 1])
def test_a_peer_that_does_not_come_is_named(on_ranks, others):
    def body(transport):
        if transport.rank == 1:
            return
        transport.timeout_s = 0.1 if transport.rank == 2 else 20
        way = ring.RingAllreduce(transport, add_into)
        tickets = [way.start(np.zeros(1000)) for _ in range(1 + others)]
        assert not tickets[-1].done()
        tickets[-1].wait()

    _, errors = on_ranks.run(3, body)
    assert isinstance(errors[0], CommTimeout)
    assert "rank 2 waited 0.1 s to receive from rank 1;" in str(errors[0])
    assert str(errors[1]).startswith("rank 2 failed: rank 2 waited")


def test_what_failed_fails_again(on_ranks):
    """An addition that raises: neither the next question nor the next wait takes the collective for finished."""

    def refuse(out, x):
        raise ValueError("no sum")

    def body(transport):
        pending = ring.RingAllreduce(transport, refuse).start(np.zeros(4))
        for ask in (pending.wait, pending.wait, pending.done):
            with pytest.raises(ValueError, match="no sum"):
                ask()
        assert not transport.in_flight

    on_ranks(2, body)


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
