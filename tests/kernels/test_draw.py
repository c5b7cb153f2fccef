"""First values of rows: SplitMix64's own numbers, the normal distribution, and nothing but seed, key and column."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hpcps_kernels import Kernels, load
from hpcps_kernels.reference.draw import DEVIATION, GAMMA, _mixed, _normal

BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]
LOW, HIGH = np.iinfo(np.int64).min, np.iinfo(np.int64).max
PUBLISHED = (  # of SplitMix64 from 1234567, Rosetta Code
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
)


def drawn(kernels: Kernels, keys, width: int, seed: int = 3, zeros: int = 0, scale: float = 1.0, dtype=np.float64):
    out = np.full((len(keys), width), np.nan, dtype)
    kernels.init_rows(out, np.asarray(keys, np.int64), seed, zeros, scale)
    return out


def test_outputs_are_splitmix64_s() -> None:
    states = 1234567 + GAMMA * np.arange(1, 6, dtype=object)
    assert _mixed((states % 2**64).astype(np.uint64)).tolist() == list(PUBLISHED)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_a_value_depends_on_seed_key_and_column_alone(kernels: Kernels) -> None:
    keys = np.array([0, 1, -1, LOW, HIGH, 77, 1 << 40])
    whole = drawn(kernels, keys, 9)
    order = np.array([3, 0, 6, 2, 2])
    np.testing.assert_array_equal(drawn(kernels, keys[order], 9), whole[order])
    np.testing.assert_array_equal(drawn(kernels, keys, 4), whole[:, :4])
    after = drawn(kernels, keys, 9, zeros=2)
    assert not after[:, :2].any()
    np.testing.assert_array_equal(after[:, 2:], whole[:, 2:])
    np.testing.assert_array_equal(drawn(kernels, keys, 9, dtype=np.float32), whole.astype(np.float32))
    for other in (drawn(kernels, keys, 9, seed=4), drawn(kernels, keys ^ 8, 9)):
        assert (other != whole).mean() > 0.99


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_zeros_are_positive(kernels: Kernels) -> None:
    for zeros, scale in ((0, 0.0), (5, 1.0), (99, 1.0)):
        found = drawn(kernels, np.arange(50), 5, zeros=zeros, scale=scale)
        assert not found.any()
        assert not np.signbit(found).any()


@pytest.mark.parametrize("keys", [np.arange(200_000), np.arange(200_000) << 44], ids=["next to another", "far apart"])
def test_the_distribution_is_the_normal_one(keys) -> None:
    values = drawn(load("cpu"), keys, 5, scale=0.5) / 0.5
    n = values.size
    assert abs(values.mean()) < 4 / math.sqrt(n)
    assert abs((values**2).mean() - 1) < 4 * math.sqrt(2 / n)
    assert abs((values**3).mean()) < 4 * math.sqrt(15 / n)
    assert (values**4).mean() == pytest.approx(3 - 0.06, abs=4 * math.sqrt(96 / n))
    points = np.linspace(-4, 4, 81)
    normal = np.array([math.erf(x / math.sqrt(2)) for x in points]) / 2 + 0.5
    found = np.searchsorted(np.sort(values.reshape(-1)), points) / n
    assert abs(found - normal).max() < 0.002 + 2 / math.sqrt(n)
    assert abs(values).max() < 5.95
    across = np.corrcoef(values.T)
    assert abs(across - np.eye(5)).max() < 5 / math.sqrt(len(keys))
    assert abs((values[1:] * values[:-1]).mean(axis=0)).max() < 5 / math.sqrt(len(keys))


def test_deviation_is_that_of_the_integers() -> None:
    ones = np.array([math.comb(32, k) for k in range(33)]) / 2**32
    of_ones = (ones * (np.arange(33) - 16) ** 2).sum() * 2**32
    of_slope = 2 * (2**32 - 1) / 12
    assert math.sqrt(of_ones + of_slope) == pytest.approx(DEVIATION, rel=1e-12)
    assert _normal(np.array([0xFFFFFFFF0000FFFF, 0x00000000FFFF0000], np.uint64)).tolist() == [
        16 * 2**16 + 2**16 - 1,
        -16 * 2**16 - 2**16 + 1,
    ]
