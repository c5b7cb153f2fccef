"""The random part that is held out."""

from __future__ import annotations

import numpy as np
import pytest

from hpcps.data.pieces import rows_between
from hpcps.data.split import split_rows
from hpcps.errors import ConfigError, DataError


@pytest.mark.parametrize(("count", "fraction", "held"), [(10, 0.3, 3), (1000, 0.123, 123), (2, 0.5, 1)])
def test_rows_are_parted(count, fraction, held):
    train, test = split_rows(count, fraction, 3, "a")
    assert len(test) == held
    assert sorted([*train, *test]) == list(range(count))
    assert (np.diff(train) > 0).all()
    assert (np.diff(test) > 0).all()


def test_seed_decides():
    first, again, other = (split_rows(1000, 0.5, seed, "a")[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len(split_rows(10, 0.5, -1, "a")[1]) == 5
    assert len(split_rows(10, 0.5, 2**64 - 1, "a")[1]) == 5


def test_draw_is_even():
    counts = sum(np.isin(np.arange(20), split_rows(20, 0.25, seed, "a")[1]) for seed in range(400))
    assert abs(counts - 100).max() < 45  # five standard deviations


def test_fractions_that_leave_nothing():
    for fraction, side in ((0.04, "held-out"), (0.96, "training")):
        with pytest.raises(DataError, match=f"a.csv: .* {fraction} of its 10 samples leaves no {side} sample"):
            split_rows(10, fraction, 0, "a.csv")
    for fraction in (-0.1, 1.0, 2.0, float("nan")):
        with pytest.raises(ConfigError, match=r"data\.test_fraction = .* between 0 and 1"):
            split_rows(10, fraction, 0, "a.csv")


def test_held_out_rows_are_the_rows_of_the_file(tmp_path, write, load, joined):
    samples = np.arange(50, dtype=np.float32)[:, None]
    for kind in ("npy", "csv", "npz packed"):
        sets = load(write(kind, tmp_path, samples, np.arange(50) % 2), 3, test_fraction=0.2, seed=4)
        train, test = split_rows(50, 0.2, 4, "a")
        np.testing.assert_array_equal(joined(sets, "train")[0][:, 0], train)
        np.testing.assert_array_equal(joined(sets, "test")[0][:, 0], test)
        np.testing.assert_array_equal(joined(sets, "test")[1], test % 2)


def test_no_held_out_samples(tmp_path, write, load):
    for one in load(write("npy", tmp_path, np.ones((9, 2)), np.arange(9) % 2), 2):
        assert (one.test_count, one.test) == (0, {})


@pytest.mark.parametrize(("low", "high"), [(0, 5), (3, 4), (5, 5), (4, 20), (15, 20)])
def test_rows_between(low, high):
    for rows in (range(2, 12), np.array([2, 3, 5, 8, 11])):
        assert list(rows_between(rows, low, high)) == [row - low for row in rows if low <= row < high]
