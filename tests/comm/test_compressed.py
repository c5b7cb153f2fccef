"""All-reduces in fewer bytes, on threads: how far off one may be, that many are no farther off, and the same bits."""

import time

import hpcps_kernels
import numpy as np
import pytest

from hpcps.comm import compressed
from hpcps.comm.checked import CheckedTransport
from hpcps.comm.codes import BFloat16, Int8
from hpcps.comm.compressed import CompressedAllreduce
from hpcps.comm.largest import LargestAllreduce
from hpcps.errors import CommError, NotFiniteError

KERNELS = hpcps_kernels.load("cpu")
BLOCK = 64
RANKS = range(1, 9)
MESSAGE_BYTES = 3 * (BLOCK + 4)  # small, so that there are many segments
FRACTION = 0.1
CODED = ["bf16", "int8"]
KINDS = [*CODED, "topk"]


def make(kind, transport, count, message_bytes=MESSAGE_BYTES):
    if kind == "topk":
        return LargestAllreduce(transport, count, "float32", FRACTION, KERNELS)
    code = Int8(KERNELS, BLOCK) if kind == "int8" else BFloat16(KERNELS)
    return CompressedAllreduce(transport, count, code, message_bytes)


def sizes(ranks):
    return [0, 1, ranks - 1, ranks, BLOCK - 1, BLOCK + 1, 1001, 70001]


def values(count, rank, number=0):
    """Normal, of another magnitude in each run of 100."""
    rng = np.random.default_rng([rank, number])
    return (rng.normal(size=count) * 10.0 ** (np.arange(count) // 100 % 7 - 3)).astype(np.float32)


def addends(count, ranks, number=0):
    return np.array([values(count, rank, number) for rank in range(ranks)], np.float64).reshape(ranks, count)


def error_bound(kind, parts):
    """What two roundings, of each addend and of the sum, and sums in float32 may come to, for each number."""
    if len(parts) == 1:
        return np.zeros_like(parts[0])
    magnitudes = np.abs(parts)
    if kind == "bf16":
        relative, magnitude = 2.0**-8, magnitudes.sum(axis=0)
    else:
        starts = np.arange(0, parts.shape[1], BLOCK)
        largest = np.maximum.reduceat(magnitudes, starts, axis=1).sum(axis=0) if len(starts) else np.zeros(0)
        relative, magnitude = 0.5 / 127, np.repeat(largest, BLOCK)[: parts.shape[1]]
    return magnitude * (relative + relative * (1 + relative) + len(parts) * 2.0**-23)


@pytest.mark.parametrize("kind", CODED)
@pytest.mark.parametrize("ranks", RANKS)
def test_one_sum_is_off_by_two_roundings_and_has_the_same_bits_everywhere(on_ranks, kind, ranks):
    def body(transport):
        found = []
        for count in sizes(ranks):
            x = values(count, transport.rank)
            make(kind, transport, count).start(x).wait()
            found.append(x)
        return found

    for results in zip(*on_ranks(ranks, body), strict=True):
        parts = addends(len(results[0]), ranks)
        assert len({x.tobytes() for x in results}) == 1
        assert (np.abs(results[0] - parts.sum(axis=0)) <= error_bound(kind, parts)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ranks", RANKS)
def test_the_largest_are_added_in_rank_order(on_ranks, ranks, dtype):
    def body(transport):
        found = []
        for count in sizes(ranks):
            x = values(count, transport.rank).astype(dtype)
            LargestAllreduce(transport, count, dtype, FRACTION, KERNELS).start(x).wait()
            found.append(x)
        return found

    for results in zip(*on_ranks(ranks, body), strict=True):
        count = len(results[0])
        picked = min(count, max(1, round(FRACTION * count)))
        expected = np.zeros(count, dtype)
        for rank in range(ranks):
            x = values(count, rank).astype(dtype)
            taken = np.argsort(-np.abs(x), kind="stable")[: picked if ranks > 1 else count]
            expected[taken] += x[taken]
        for x in results:
            np.testing.assert_array_equal(x, expected, strict=True)


@pytest.mark.parametrize("kind", CODED)
@pytest.mark.parametrize("ranks", [2, 5])
def test_what_rounding_leaves_out_is_sent_later(on_ranks, kind, ranks):
    count, calls = 1001, 50

    def body(transport):
        way, total, first = make(kind, transport, count), np.zeros(count), None
        for _ in range(calls):
            x = values(count, transport.rank)
            way.start(x).wait()
            total += x
            first = x if first is None else first
        return total, first

    parts = addends(count, ranks)
    bound = error_bound(kind, parts) * 1.1  # a residual is of x plus a residual
    for total, first in on_ranks(ranks, body):
        assert (np.abs(total - calls * parts.sum(axis=0)) <= bound + calls * np.abs(parts).sum(axis=0) * 1e-6).all()
        assert (calls * np.abs(first - parts.sum(axis=0)) > bound).mean() > 0.5  # as it would be, were it left out


@pytest.mark.parametrize("ranks", [2, 5])
def test_what_is_not_among_the_largest_is_sent_later(on_ranks, ranks):
    """The norm of a residual stays below 2 / fraction of the addend's: Karimireddy et al. 2019, lemma 3."""
    count, calls = 1000, 400

    def body(transport):
        way, total = make("topk", transport, count), np.zeros(count)
        for _ in range(calls):
            x = np.random.default_rng(transport.rank).normal(size=count).astype(np.float32)
            way.start(x).wait()
            total += x
        return total

    parts = np.array([np.random.default_rng(rank).normal(size=count) for rank in range(ranks)])
    bound = 2 / FRACTION * np.linalg.norm(parts, axis=1).sum()
    for total in on_ranks(ranks, body):
        assert np.linalg.norm(total - calls * parts.sum(axis=0)) < bound
        assert np.linalg.norm(calls * parts.sum(axis=0)) > 5 * bound


@pytest.mark.parametrize("kind", CODED)
def test_rounds_have_the_same_bits_whatever_the_segments(on_ranks, kind):
    ranks, count, rounds = 3, 9000, 4

    def body(transport):
        found = []
        for message_bytes in (1, 3000, 1 << 20):
            way = make(kind, transport, count, message_bytes)
            found.append([values(count, transport.rank, number) for number in range(rounds)])
            for x in found[-1]:
                way.start(x).wait()
        return np.array(found)

    results = on_ranks(ranks, body)
    for found in results:
        np.testing.assert_array_equal(found, np.broadcast_to(results[0][0], found.shape))
    parts = [addends(count, ranks, number) for number in range(rounds)]
    bound = 2 * np.max([error_bound(kind, part) for part in parts], axis=0)
    off = np.abs(results[0][0].sum(axis=0, dtype=np.float64) - np.sum(parts, axis=(0, 1)))
    assert (off <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sum_goes_on_when_it_is_asked_whether_it_is_done(on_ranks, kind):
    def body(transport):
        x = values(5000, transport.rank)
        pending = make(kind, transport, len(x)).start(x)
        deadline = time.monotonic() + transport.timeout_s
        while not pending.done():
            assert time.monotonic() < deadline
            time.sleep(0)
        pending.wait()
        return x

    def at_once(transport):
        x = values(5000, transport.rank)
        make(kind, transport, len(x)).start(x).wait()
        return x

    np.testing.assert_array_equal(on_ranks(4, body), on_ranks(4, at_once))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_an_error(on_ranks, kind, value):
    for count, at in ((1, 0), (1000, 0), (1000, 999), (9000, 4321)):

        def body(transport, count=count, at=at):
            x = values(count, transport.rank)
            if transport.rank == 1:
                x[at] = value
            make(kind, transport, count).start(x).wait()

        _, errors = on_ranks.run(3, body)
        assert isinstance(errors[0], NotFiniteError)
        assert "learning_rate" in str(errors[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_sum_that_overflows_is_an_error(on_ranks, kind):
    def body(transport):
        x = np.full(100, 2e38, np.float32)
        make(kind, transport, len(x)).start(x).wait()

    with pytest.raises(NotFiniteError, match="too large"):
        on_ranks(2, body)


@pytest.mark.parametrize("kind", KINDS)
def test_several_on_their_way_waited_for_in_any_order_also_with_checks(on_ranks, kind):
    counts = (1001, 9000, 64)

    def body(transport):
        found = []
        for one in (transport, CheckedTransport(transport)):
            arrays = [values(count, one.rank) for count in counts]
            pending = [make(kind, one, len(x)).start(x) for x in arrays]
            for i in np.random.default_rng(one.rank).permutation(len(counts)):
                pending[i].wait()
            found.append(np.concatenate(arrays).tobytes())
        alone = [values(count, transport.rank) for count in counts]
        for x in alone:
            make(kind, transport, len(x)).start(x).wait()
        return {*found, np.concatenate(alone).tobytes()}

    assert len(set.union(*on_ranks(4, body))) == 1


def test_bytes_and_names(on_ranks):
    [ways] = on_ranks(1, lambda t: [compressed.make(kind, t, 1000, "float32", KERNELS) for kind in KINDS])
    names = ["bf16, error feedback", "int8, blocks of 256, error feedback", "top-k, fraction 0.01, error feedback"]
    assert [way.name for way in ways] == names
    assert BFloat16(KERNELS).message_bytes(1000) == 2000
    assert Int8(KERNELS, 256).message_bytes(1025) == 1025 + 5 * 4


def test_more_positions_than_int32_has_are_refused(on_ranks):
    with pytest.raises(CommError, match="top-k of 2147483649 numbers"):
        on_ranks(1, lambda t: LargestAllreduce(t, 2**31 + 1, "float32", 0.01, KERNELS))
