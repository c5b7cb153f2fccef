"""Casts over every half, codes of 8 bits with their draws, and the k largest with many equal."""

from __future__ import annotations

import numpy as np
import pytest
from hpcps_kernels import Kernels, load
from hpcps_kernels.reference import codec
from kernel_cases import FLOATS

CPU = load("cpu")
BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]
EVERY = np.arange(2**16, dtype=np.uint16)


def cast(name: str, x: np.ndarray, dtype: str) -> np.ndarray:
    out = np.empty(len(x), dtype)
    getattr(CPU, name)(out, x)
    return out


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_every_half_comes_back(kernels: Kernels, kind: str) -> None:
    wide, back = np.empty(2**16, np.float32), np.empty(2**16, np.uint16)
    getattr(kernels, f"from_{kind}")(wide, EVERY)
    getattr(kernels, f"to_{kind}")(back, wide)
    is_nan = np.isnan(wide)
    assert is_nan.sum() == (2 * 127 if kind == "bfloat16" else 2 * 1023)
    np.testing.assert_array_equal(back[~is_nan], EVERY[~is_nan])
    getattr(kernels, f"from_{kind}")(wide, back)
    assert np.isnan(wide[is_nan]).all()


def test_halves_round_as_numpy_rounds() -> None:
    assert cast("from_float16", EVERY[:0x7C01], "float32").tobytes() == (
        EVERY[:0x7C01].view(np.float16).astype(np.float32).tobytes()
    )
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    x = np.concatenate([bits.view(np.float32), np.float32(2.0) ** np.arange(-30, 20, 0.25, dtype=np.float32)])
    x = x[~np.isnan(x)]
    with np.errstate(over="ignore", under="ignore"):
        np.testing.assert_array_equal(cast("to_float16", x, "uint16"), x.astype(np.float16).view(np.uint16))
    edge = np.array([65504, 65519.99, 65520, -1e30, 2.0**-24, 2.0**-25, 2.0**-25 * 1.001, -0.0], np.float32)
    assert cast("to_float16", edge, "uint16").tolist() == [0x7BFF, 0x7BFF, 0x7C00, 0xFC00, 1, 0, 1, 0x8000]


def test_bfloat16_rounds_to_the_nearest_and_half_to_even() -> None:
    wide = cast("from_bfloat16", EVERY[:0x7F80], "float32")
    middle = ((wide[:-1].astype(np.float64) + wide[1:]) / 2).astype(np.float32)
    even = EVERY[: 0x7F80 - 1] + (EVERY[: 0x7F80 - 1] & 1)
    np.testing.assert_array_equal(cast("to_bfloat16", middle, "uint16"), even)
    above, below = np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(0))
    np.testing.assert_array_equal(cast("to_bfloat16", above, "uint16"), EVERY[1:0x7F80])
    np.testing.assert_array_equal(cast("to_bfloat16", -below, "uint16"), EVERY[: 0x7F80 - 1] | 0x8000)
    largest = np.array([3.4028235e38, np.inf, -np.inf], np.float32)
    assert cast("to_bfloat16", largest, "uint16").tolist() == [0x7F80, 0x7F80, 0xFF80]


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_a_nan_stays_one_whatever_its_bits(kind: str) -> None:
    nans = np.concatenate([np.uint32(0x7F800000) + (np.uint32(1) << np.arange(23, dtype=np.uint32)), [0xFFFFFFFF]])
    codes = cast(f"to_{kind}", nans.astype(np.uint32).view(np.float32), "uint16")
    assert np.isnan(cast(f"from_{kind}", codes, "float32")).all()


def quantized(kernels: Kernels, x: np.ndarray, block: int, rounding: str = "nearest", seed: int = 3, counter: int = 0):
    codes, scales = np.empty(len(x), np.int8), np.empty(-(-len(x) // block), np.float32)
    kernels.quantize_int8(codes, scales, x, block, rounding, seed, counter)
    return codes, scales


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("magnitude", [1.0, 1e38, 1e-38, 1e-44])
def test_codes_are_within_a_step_of_what_they_stand_for(rounding: str, magnitude: float) -> None:
    x = (np.random.default_rng(1).uniform(-1, 1, 1000) * magnitude).astype(np.float32)
    codes, scales = quantized(CPU, x, 64, rounding)
    out = np.empty_like(x)
    CPU.dequantize_int8(out, codes, scales, 64)
    assert codes.min() >= -127
    if magnitude > 1e-40:
        step = np.repeat(scales.astype(np.float64), 64)[:1000]
        assert (np.abs(out.astype(np.float64) - x) <= step * (0.5001 if rounding == "nearest" else 1.0001)).all()


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_zeros_have_scale_0_and_a_block_its_own_scale(kernels: Kernels) -> None:
    x = np.array([0, 0, 1, -127, 63.5, 64.5], np.float32)
    codes, scales = quantized(kernels, x, 2)
    assert codes.tolist() == [0, 0, 1, -127, 125, 127]
    assert scales.tolist() == [0, 1, np.float32(64.5) / np.float32(127)]


def test_the_draws_are_splitmix64() -> None:
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1
    states = np.array([(1234567 + j * golden) & mask for j in range(1, 6)], np.uint64)
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert codec._mixed(states).tolist()[:3] == published
    draws = codec._uniform(5, 0, 100_000)
    assert 0 <= draws.min() < 1e-4
    assert 1 - 1e-4 < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(draws, codec._uniform(6, 0, 100_000))[0, 1]) < 0.02


def test_the_mean_of_random_roundings_is_the_value() -> None:
    x = np.full(200_000, 0.3, np.float32)
    x[0::1000] = 127
    codes, _ = quantized(CPU, x, 1000, "stochastic")
    assert set(np.unique(codes)) == {0, 1, 127}
    assert abs(np.delete(codes, np.s_[0::1000]).mean() - 0.3) < 0.005


def test_slices_draw_what_the_whole_draws() -> None:
    x = np.random.default_rng(2).normal(size=10_007).astype(np.float32)
    whole, scales = quantized(CPU, x, 37, "stochastic", seed=2**64 - 1, counter=2**40 + 1)
    for start, stop in ((0, 37), (37, 37 * 100), (37 * 101, 10_007)):
        codes, few = quantized(CPU, x[start:stop], 37, "stochastic", seed=2**64 - 1, counter=2**40 + 1 + start)
        assert codes.tobytes() == whole[start:stop].tobytes()
        assert few.tobytes() == scales[start // 37 : -(-stop // 37)].tobytes()
    other, _ = quantized(CPU, x, 37, "stochastic", seed=2**64 - 2, counter=2**40 + 1)
    assert (other != whole).any()


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_codes_are_added_as_the_numbers_that_they_stand_for(kernels: Kernels) -> None:
    x, out = np.random.default_rng(8).normal(size=(2, 1001)).astype(np.float32)
    codes, scales = quantized(kernels, x, 64)
    wanted, numbers = out.copy(), np.empty_like(x)
    kernels.dequantize_int8(numbers, codes, scales, 64)
    kernels.add_into(wanted, numbers)
    kernels.dequantize_add_int8(out, codes, scales, 64)
    assert out.tobytes() == wanted.tobytes()
    with pytest.raises(ValueError, match="scales must hold one for each block"):
        kernels.dequantize_add_int8(out, codes, scales[1:].copy(), 64)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_code(kernels: Kernels, value: float) -> None:
    for at in (0, 50, 99):
        x = np.ones(100, np.float32)
        x[at] = value
        with pytest.raises(ValueError, match="not finite"):
            quantized(kernels, x, 16)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize(("count", "block"), [(1, 4), (4, 4), (3, 0), (3, -4)])
def test_scales_must_fit_the_blocks(kernels: Kernels, count: int, block: int) -> None:
    codes, x = np.zeros(9, np.int8), np.zeros(9, np.float32)
    for call in (
        lambda: kernels.quantize_int8(codes, np.zeros(count, np.float32), x, block, "nearest", 0, 0),
        lambda: kernels.dequantize_int8(x, codes, np.zeros(count, np.float32), block),
    ):
        with pytest.raises(ValueError, match=f"block of {block} of 9 elements, not {count}"):
            call()


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_what_the_codes_leave_out_is_sent_later(kernels: Kernels, rounding: str) -> None:
    rng = np.random.default_rng(6)
    residual, sent, total = np.zeros(500, np.float32), np.zeros(500), np.zeros(500)
    codes, scales, out = np.empty(500, np.int8), np.empty(8, np.float32), np.empty(500, np.float32)
    for step in range(50):
        x = rng.normal(size=500).astype(np.float32)
        kernels.quantize_int8_feedback(codes, scales, residual, x, 64, rounding, 1, 500 * step)
        kernels.dequantize_int8(out, codes, scales, 64)
        sent, total = sent + out, total + x
    np.testing.assert_allclose(sent + residual, total, atol=1e-4)
    assert np.abs(residual).max() < 0.06


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["normal", "equal", "few values", "rising", "falling", "tiny", "with inf"])
def test_the_largest_are_picked_as_by_a_sort(kind: str, dtype: str) -> None:
    n = 3001
    rng = np.random.default_rng(7)
    x = {
        "normal": rng.normal(size=n),
        "equal": np.where(rng.random(n) < 0.5, -1.5, 1.5),
        "few values": rng.integers(-3, 4, n) * 1.0,
        "rising": np.arange(n) - 1.0,
        "falling": -np.arange(n)[::-1] * 1e-3,
        "tiny": rng.normal(size=n) * 1e-44,
        "with inf": np.where(rng.random(n) < 0.01, -np.inf, rng.normal(size=n)),
    }[kind].astype(dtype)
    for k in (0, 1, 2, 30, 1500, 3000, 3001):
        index, values, residual = np.empty(k, np.int64), np.empty(k, dtype), x.copy()
        CPU.top_k(index, values, residual, np.zeros(n, dtype))
        wanted = np.sort(np.argsort(-np.abs(x), kind="stable")[:k])
        np.testing.assert_array_equal(index, wanted)
        np.testing.assert_array_equal(values, x[wanted])
        x_left = x.copy()
        x_left[wanted] = 0
        np.testing.assert_array_equal(residual, x_left)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_top_k_refuses_nan_and_more_than_there_are(kernels: Kernels) -> None:
    one, two = np.zeros(3, np.int64), np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="k = 3 is more than n = 2"):
        kernels.top_k(one, two, np.zeros(2, np.float32), np.zeros(2, np.float32))
    for at in (0, 77, 99):
        residual = np.arange(100, dtype=np.float32)
        residual[at] = -np.nan
        with pytest.raises(ValueError, match="holds a nan"):
            kernels.top_k(one, two, residual, np.zeros(100, np.float32))
