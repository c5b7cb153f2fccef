"""Rows that a worker keeps back: nothing is lost, nothing is kept that is beyond its limit, and shards get the rest."""

import hpcps_kernels
import numpy as np
import pytest

from hpcps.errors import CommError
from hpcps.exchange import ServerExchange
from hpcps.rows import Merger, PulledRows, Rows
from hpcps.server import messages
from hpcps.server.client import Traffic
from hpcps.server.filters import KeptRows, RowFilter
from hpcps.sums import Summed

KERNELS = hpcps_kernels.load("reference")
KEYS = 40
NO_BOUND = 1 << 40


def some_rows(rng, width, keys=KEYS):
    """Whole numbers, so that sums are exact, of keys far apart."""
    chosen = rng.permutation(keys)[: rng.integers(0, keys)] * 10**15 - 10**16
    return Rows(chosen, rng.integers(-4, 5, (len(chosen), width)).astype(np.float32))


class Oracle:
    """The same, key by key."""

    def __init__(self, threshold, zero_threshold):
        self.kept, self.threshold, self.zero_threshold = {}, threshold, max(threshold, zero_threshold)

    def take(self, rows, weights):
        pushed = {}
        for key, value, weight in zip(rows.keys.tolist(), rows.values, weights, strict=True):
            total = value + self.kept.pop(key, (0, False))[0]
            is_zero = not weight.any()
            if abs(total).max() > (self.zero_threshold if is_zero else self.threshold):
                pushed[key] = total
            else:
                self.kept[key] = total, is_zero
        return pushed

    def take_all(self, rows, weights, zero_threshold):
        pushed = self.take(rows, weights)
        for key, (total, is_zero) in list(self.kept.items()):
            if not (is_zero and abs(total).max() <= zero_threshold):
                pushed[key] = self.kept.pop(key)[0]
        return {key: total for key, total in pushed.items() if total.any()}


def same(rows, expected):
    assert sorted(rows.keys.tolist()) == sorted(expected)
    for key, value in zip(rows.keys.tolist(), rows.values, strict=True):
        assert np.array_equal(value, expected[key])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize(("threshold", "zero_threshold"), [(0, 5), (3, 0), (6, 0), (2, 7), (7, 2), (10**9, 0)])
@pytest.mark.parametrize("seed", range(4))
def test_what_was_pushed_and_what_is_kept_add_up_to_all_gradients(backend, width, threshold, zero_threshold, seed):
    rng = np.random.default_rng(seed)
    kept = KeptRows(width, np.float32, threshold, zero_threshold, hpcps_kernels.load(backend), NO_BOUND)
    oracle, given, taken = Oracle(threshold, zero_threshold), {}, {}
    for step in range(30):
        rows = some_rows(rng, width)
        before = rows.values.copy()
        weights = (rng.random((len(rows.keys), 1)) < 0.5) * np.ones((1, width), np.float32)
        for key, value in zip(rows.keys.tolist(), rows.values, strict=True):
            given[key] = given.get(key, 0) + value
        if step % 10 == 9:
            pushed = kept.take_all(rows, weights if zero_threshold else None)
            expected = oracle.take_all(rows, weights if zero_threshold else weights + 1, zero_threshold)
            same(pushed._replace(keys=pushed.keys[pushed.values.any(axis=1)], values=_without_zeros(pushed)), expected)
        else:
            pushed, are_pushed = kept.take(rows, weights if zero_threshold else None)
            assert np.array_equal(pushed.keys, rows.keys[are_pushed])
            same(pushed, oracle.take(rows, weights if zero_threshold else weights + 1))
        assert np.array_equal(rows.values, before)
        for key, value in zip(pushed.keys.tolist(), pushed.values, strict=True):
            taken[key] = taken.get(key, 0) + value
        for key, total in given.items():
            assert np.all(total == taken.get(key, 0) + oracle.kept.get(key, (0,))[0])


def _without_zeros(rows):
    return rows.values[rows.values.any(axis=1)]


def test_what_is_not_finite_is_never_kept():
    kept = KeptRows(2, np.float32, 1e30, 1e30, KERNELS)
    rows = Rows(np.arange(3), np.array([[0, np.nan], [1, 1], [np.inf, 0]], np.float32))
    pushed, are_pushed = kept.take(rows, np.zeros((3, 2), np.float32))
    assert are_pushed.tolist() == [True, False, True]
    assert np.array_equal(pushed.values, rows.values[[0, 2]], equal_nan=True)


def test_a_worker_that_has_come_to_keep_too_much_pushes_all():
    kept = KeptRows(1, np.float32, 1.0, 5.0, KERNELS, most_bytes=20 * 77)
    zeros = np.zeros((20, 1), np.float32)
    for begin in (0, 20):
        assert not kept.is_full
        pushed, _ = kept.take(Rows(np.arange(begin, begin + 20), zeros + 1), zeros)
        assert len(pushed.keys) == 0
    assert kept.is_full
    everything = kept.take_all(Rows(np.arange(30, 50), zeros + 1), zeros)
    assert sorted(everything.keys) == list(range(50))
    assert everything.values.sum() == 60
    assert not kept.is_full
    assert len(kept) == 0


class Recording:
    """A client that adds up what it is given."""

    def __init__(self):
        self.total, self.rows = np.zeros((KEYS, 2)), 0

    def push(self, step, gradient, slack=0):
        for keys, values in gradient.rows.values():
            np.add.at(self.total, keys, values)
            self.rows += len(keys)

    def traffic(self):
        return Traffic(0.0, 0, 0, 0)


def test_the_last_step_of_an_epoch_pushes_what_is_kept():
    pulled, client, rng = PulledRows({"t": 2}, np.float32, KERNELS), Recording(), np.random.default_rng(0)
    row_filter = RowFilter(pulled, 1e9, 0.0, KERNELS)
    exchange = ServerExchange(client, None, Merger(KERNELS), "", row_filter=row_filter)
    expected, given = np.zeros((KEYS, 2)), 0
    for step in range(1, 11):
        keys = rng.permutation(KEYS)[:7]
        values = rng.integers(1, 5, (7, 2)).astype(np.float32)
        np.add.at(expected, keys, values)
        given += len(keys)
        exchange.push(step, Summed(np.empty(0), 1.0, {"t": Rows(keys, values)}), flush=step % 5 == 0)
        assert client.rows == 0 or step >= 5
        if step % 5 == 0:
            assert np.array_equal(client.total, expected)
    assert exchange.traffic() == Traffic(0.0, 0, 0, 0, given, client.rows)


@pytest.mark.parametrize("counts", [[0], [1], [7, 8, 9], [0, 64, 65], [1000, 0]])
def test_a_bit_for_each_key_tells_which_are_meant(counts):
    rng = np.random.default_rng(len(counts))
    keys, are_in = [rng.integers(-9, 9, count) for count in counts], [rng.random(count) < 0.3 for count in counts]
    section = messages.pack_picked(are_in)
    assert len(section) == sum(-(-count // 8) for count in counts)
    buffer = np.zeros(messages.padded(len(section)) + 5, np.uint8)
    buffer[: len(section)] = section
    found, behind = messages.unpack_picked(buffer, keys)
    assert all(np.array_equal(one, own[which]) for one, own, which in zip(found, keys, are_in, strict=True))
    assert len(behind) == 5
    if len(section):
        with pytest.raises(CommError, match="too few to tell which keys"):
            messages.unpack_picked(section[:-1], keys)
