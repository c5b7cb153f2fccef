"""Activations against their definitions and numerical derivatives, to what they promise, and nan and inf."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hpcps_kernels import Kernels, load
from hpcps_kernels.spec import ACTIVATIONS

REFERENCE, CPU = load("reference"), load("cpu")
BACK_ENDS = [pytest.param(REFERENCE, id="reference"), pytest.param(CPU, id="cpu")]
FLOATS = (np.float32, np.float64)


def activated(kernels: Kernels, x, activation: str) -> np.ndarray:
    z = np.array(x, ndmin=2)
    out = np.empty_like(z)
    kernels.bias_activation(out, z, np.zeros(z.shape[1], z.dtype), activation)
    return out[0]


def slopes(kernels: Kernels, x, activation: str) -> np.ndarray:
    z = np.array(x, ndmin=2)
    delta, out = np.ones_like(z), activated(kernels, x, activation)[None]
    kernels.activation_gradient(delta, np.empty(z.shape[1], z.dtype), z, out, activation)
    return delta[0]


def range_of(dtype) -> np.ndarray:
    """Numbers of all sizes and both signs."""
    rng = np.random.default_rng(1)
    return np.concatenate([scale * rng.standard_normal(3000) for scale in (1e-6, 0.1, 1, 5)]).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_tanh_is_within_three_units_in_the_last_place(dtype) -> None:
    x = range_of(dtype)
    exact = np.tanh(x.astype(np.longdouble))
    error = np.abs(activated(CPU, x, "tanh") - exact) / np.spacing(np.abs(exact).astype(dtype))
    assert error.max() < 3


@pytest.mark.parametrize("dtype", FLOATS)
def test_gelu_is_within_four_epsilons_of_its_argument(dtype) -> None:
    x = range_of(dtype)
    below = [0.5 * math.erfc(-v / math.sqrt(2)) for v in x.astype(np.float64)]
    error = np.abs(activated(CPU, x, "gelu") - x * np.array(below)) / np.maximum(np.abs(x), 1e-30)
    assert error.max() < 4 * np.finfo(dtype).eps


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_published_values(kernels: Kernels) -> None:
    x = np.array([-3.0, -1.0, 0.0, 0.5, 2.0])
    gelu = [
        -0.00404969409489031,
        -0.158655253931457,
        0,
        0.345731230637,
        1.95449973610364,
    ]  # x times tables of the normal
    np.testing.assert_allclose(activated(kernels, x, "gelu"), gelu, atol=1e-12)
    assert activated(kernels, x, "relu").tolist() == [0, 0, 0, 0.5, 2]
    assert slopes(kernels, x, "relu").tolist() == [0, 0, 0, 1, 1]
    assert activated(kernels, x, "identity").tolist() == x.tolist()
    assert slopes(kernels, x, "identity").tolist() == [1] * 5


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_the_slope_is_the_derivative(kernels: Kernels, activation: str) -> None:
    x, h = np.linspace(-6, 6, 241), 1e-5
    numerical = (activated(kernels, x + h, activation) - activated(kernels, x - h, activation)) / (2 * h)
    np.testing.assert_allclose(slopes(kernels, x, activation), numerical, atol=1e-9)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_goes_through_and_so_do_infinities_that_have_a_limit(kernels: Kernels, dtype, activation: str) -> None:
    x = np.array([np.nan] * 3 + [np.inf] * 3 + [-np.inf] * 3 + [300.0, -300.0] * 9, dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        y, slope = activated(kernels, x, activation), slopes(kernels, x, activation)
    assert np.isnan(y[:3]).all()
    assert activation == "identity" or np.isnan(slope[:3]).all()
    high, low = {"identity": (np.inf, -np.inf), "relu": (np.inf, 0), "tanh": (1, -1), "gelu": (np.inf, np.nan)}[
        activation
    ]
    np.testing.assert_array_equal(y[3:9], [high] * 3 + [low] * 3)
    assert not np.isnan(y[9:]).any()
    assert not np.isnan(slope[9:]).any()


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_the_bias_stays_in_z_and_its_gradient_is_the_sum_of_the_columns(kernels: Kernels) -> None:
    rng = np.random.default_rng(4)
    before, bias = rng.standard_normal((9, 21)), rng.standard_normal(21)
    z, out = before.copy(), np.empty((9, 21))
    kernels.bias_activation(out, z, bias, "gelu")
    assert np.array_equal(z, before + bias)
    delta, gradient = rng.standard_normal((9, 21)), np.empty(21)
    kernels.activation_gradient(delta, gradient, z, out, "gelu")
    np.testing.assert_allclose(gradient, delta.sum(axis=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_an_unknown_activation_is_refused(kernels: Kernels) -> None:
    x = np.zeros((2, 2))
    with pytest.raises(ValueError, match="activation must be one of identity, relu, tanh, gelu, not 'swish'"):
        kernels.bias_activation(np.empty((2, 2)), x, np.zeros(2), "swish")
