"""Sums of many buffers, scaled sums and dot products."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hpcps_kernels import Kernels, load
from kernel_cases import FLOATS

CPU = load("cpu")
BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]
DTYPES = pytest.mark.parametrize("dtype", FLOATS)


@pytest.mark.parametrize("count", range(1, 11))
@DTYPES
def test_a_sum_of_buffers_has_the_bits_of_one_add_after_the_other(count: int, dtype: str) -> None:
    for n in (1, 100, 2047, 2048, 2049, 5000):
        xs = (10.0 ** np.random.default_rng(n).integers(-3, 4, (count, n))).astype(dtype)
        xs[:, 0] = -0.0
        out, one_by_one = np.full(n, np.nan, dtype), xs[0].copy()
        CPU.sum_into(out, xs)
        for x in xs[1:]:
            CPU.add_into(one_by_one, x)
        assert out.tobytes() == one_by_one.tobytes()


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_a_sum_of_no_buffers_is_0_and_integers_wrap_round(kernels: Kernels) -> None:
    out = np.ones(5, np.float32)
    kernels.sum_into(out, np.empty((0, 5), np.float32))
    assert (out == 0).all()
    out = np.ones(3, np.int64)
    kernels.sum_into(out, np.full((2, 3), 2**62))
    assert (out == -(2**63)).all()


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_axpy_rounds_its_factor_and_its_product(kernels: Kernels) -> None:
    out, x = np.ones(3, np.float32), np.array([3, 1e10, np.nan], np.float32)
    wanted = out + np.float32(0.1) * x
    kernels.axpy(out, x, 0.1)
    np.testing.assert_array_equal(out, wanted, strict=True)


@DTYPES
def test_a_dot_product_is_summed_in_float64(dtype: str) -> None:
    for n in (0, 1, 31, 32, 33, 100_001):
        x, y = np.random.default_rng(n).normal(size=(2, n)).astype(dtype)
        exact = math.fsum(x.astype(np.float64) * y.astype(np.float64))
        magnitude = math.fsum(np.abs(x.astype(np.float64) * y.astype(np.float64)))
        assert abs(CPU.dot(x, y) - exact) <= 1e-15 * magnitude
        assert CPU.square_norm(x) == CPU.dot(x, x)
    big = np.full(100_000, 1e30, np.float32)
    assert CPU.square_norm(big) == pytest.approx(1e65, rel=1e-6)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_nan_and_inf_reach_a_dot_product_from_anywhere(kernels: Kernels) -> None:
    for at in range(70):
        x = np.ones(70, np.float32)
        x[at] = np.inf
        assert kernels.square_norm(x) == np.inf
        x[at] = np.nan
        assert np.isnan(kernels.square_norm(x))
        assert np.isnan(kernels.dot(np.zeros(70, np.float32), x))
