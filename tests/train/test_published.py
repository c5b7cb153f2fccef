"""Updates of parameters that others read: the bits of one in place, whichever way is taken, and the faster way."""

import hpcps_kernels
import numpy as np
import pytest

from hpcps import optim, published
from hpcps.config import Optimizer
from hpcps.faster import TRY_EVERY
from hpcps.params import Params
from hpcps.published import Kept, Published

KERNELS = hpcps_kernels.load("cpu")


class Clock:
    """Time passes by what the update in place, and the one aside, are said to take."""

    def __init__(self):
        self.now, self.in_place_s, self.past_s = 0.0, 1.0, 1.0

    def perf_counter(self):
        return self.now


@pytest.mark.parametrize("kind", ["sgd", "adam", "ftrl"])
def test_the_faster_way_is_taken_and_the_bits_are_those_of_an_update_in_place(kind, monkeypatch):
    clock, rng = Clock(), np.random.default_rng(0)
    monkeypatch.setattr(published, "time", clock)
    optimizer = optim.make(Optimizer(kind=kind), KERNELS)
    params, gradient = rng.normal(size=1003).astype(np.float32), np.empty(1003, np.float32)
    expected = params.copy()
    state, expected_state = optimizer.init(params), optimizer.init(expected)
    taken = []

    def make(array):
        update = optimizer.prepare(array, state, gradient, 0.5)

        def timed(step):
            is_in_place = array is params
            clock.now += clock.in_place_s if is_in_place else clock.past_s
            taken.append(is_in_place)
            update(step)

        return timed

    told = []
    update = Published(params, make, KERNELS, told.append)
    plain = optimizer.prepare(expected, expected_state, gradient, 0.5)
    others = []
    for step in range(1, 16 * TRY_EVERY + 1):
        if step == 5 * TRY_EVERY:
            clock.in_place_s = 7.0  # a core far away has come to read it
        if step == 11 * TRY_EVERY:
            clock.in_place_s = 1.0
        gradient[:] = rng.normal(size=1003)
        update(step)
        plain(step)
        np.testing.assert_array_equal(params, expected, strict=True)
        if step % TRY_EVERY == 0:
            others.append(len(taken) - sum(taken))
            taken.clear()
    assert others[:5] == [1] * 5  # one try each
    assert others[8:11] == [TRY_EVERY - 1] * 3
    assert others[14:] == [1] * 2
    assert told == [True, False]


def test_what_others_do_not_read_of_a_bucket_is_told_by_parameter():
    kept = Kept(Params.zeros({"first": (2, 5), "second": (4,), "third": (3, 2)}, np.float32))
    assert {name: bounds.tolist() for name, bounds in kept.bounds.items()} == {
        "first": [0, 10],
        "second": [0, 4],
        "third": [0, 6],
    }
    kept.change(slice(0, 14), slice(7, 14))
    assert [bounds.tolist() for bounds in kept.bounds.values()] == [[7, 10], [0, 4], [0, 6]]
    kept.change(slice(14, 20), slice(14, 17))
    kept.change(slice(0, 14), slice(0, 7))
    assert [bounds.tolist() for bounds in kept.bounds.values()] == [[0, 7], [0, 0], [0, 3]]
    kept.change(slice(0, 14), slice(0, 14))
    assert [bounds.tolist() for bounds in kept.bounds.values()] == [[0, 10], [0, 4], [0, 3]]
