"""Fewer bytes for the wire: half precision, 8 bits, the largest elements."""

from __future__ import annotations

from typing import Any

from hpcps_kernels.gpu._launch import FLOATS, THREADS, Launch, device, strides
from hpcps_kernels.gpu._told import Told
from hpcps_kernels.gpu.draw import as_signed
from hpcps_kernels.reference.codec import ROUNDINGS

STOCHASTIC = ROUNDINGS.index("stochastic")

_ELEMENTS, _WIDE, _HALF = strides(THREADS), strides(8 * THREADS), {"Half": ("Bfloat16", "Float16")}
NARROW = Launch("codec", "narrow", "u16 *, const float *, i64", _WIDE, _HALF)
WIDEN = Launch("codec", "widen", "float *, const u16 *, i64", _WIDE, _HALF)
QUANTIZE = Launch(
    "codec",
    "quantize_int8",
    "i8 *, float *, float *, i64, const float *, i64, i64, i64, i64, i64, i64, double *",
    strides(THREADS // 32),
)
DEQUANTIZE = Launch(
    "codec", "dequantize_int8", "float *, const i8 *, const float *, i64, i64, i64", strides(4 * THREADS)
)
ADD_AND_KEY = {
    "float32": Launch("codec", "add_and_key_32", "u32 *, float *, const float *, i64, double *", _ELEMENTS),
    "float64": Launch("codec", "add_and_key_64", "u64 *, double *, const double *, i64, double *", _ELEMENTS),
}
KEYS = {"float32": "uint32", "float64": "uint64"}
MARK = Launch("codec", "mark", "i64 *, const i64 *, i64", _ELEMENTS)
TAKE = Launch(
    "codec", "take", "i64 *, T *, T *, const i64 *, const i64 *, i64, const double *", _ELEMENTS, {"T": FLOATS}
)


def to_bfloat16(out: Any, x: Any) -> None:
    NARROW(x.size, out, x, x.size, Half="Bfloat16")


def from_bfloat16(out: Any, x: Any) -> None:
    WIDEN(x.size, out, x, x.size, Half="Bfloat16")


def to_float16(out: Any, x: Any) -> None:
    NARROW(x.size, out, x, x.size, Half="Float16")


def from_float16(out: Any, x: Any) -> None:
    WIDEN(x.size, out, x, x.size, Half="Float16")


def quantize_int8(codes: Any, scales: Any, x: Any, block: int, rounding: int, seed: int, counter: int) -> None:
    _quantize(codes, scales, scales, 0, x, block, rounding, seed, counter)


def quantize_int8_feedback(
    codes: Any, scales: Any, residual: Any, x: Any, block: int, rounding: int, seed: int, counter: int
) -> None:
    _quantize(codes, scales, residual, 1, x, block, rounding, seed, counter)


def dequantize_int8(out: Any, codes: Any, scales: Any, block: int) -> None:
    _dequantize(out, codes, scales, block, adds=0)


def dequantize_add_int8(out: Any, codes: Any, scales: Any, block: int) -> None:
    _dequantize(out, codes, scales, block, adds=1)


def top_k(index: Any, values: Any, residual: Any, gradient: Any) -> None:
    """Sorts all magnitudes: what is equal stays in order, so that the lower index is taken."""
    here, told, k, n = device(), Told(), index.size, residual.size
    if k > n:
        raise ValueError(f"top_k: k = {k} is more than n = {n}")
    dtype = residual.dtype.name
    keys, taken = here.empty(n, KEYS[dtype]), here.zeros(n, "int64")
    ADD_AND_KEY[dtype](n, keys, residual, gradient, n, told.array)
    MARK(k, taken, here.argsort(keys), k)
    TAKE(n, index, values, residual, taken, here.running_sum(taken), n, told.array, T=residual.dtype)
    told.sum(ValueError("top_k: residual + gradient holds a nan"))


def _quantize(
    codes: Any, scales: Any, residual: Any, feedback: int, x: Any, block: int, rounding: int, seed: int, counter: int
) -> None:
    _check_blocks(codes, scales, block)
    told = Told()
    QUANTIZE(
        scales.size, codes, scales, residual, feedback, x, x.size, block, scales.size, int(rounding == STOCHASTIC),
        as_signed(seed), as_signed(counter), told.array,
    )  # fmt: skip
    told.sum(ValueError("quantize_int8: an element is not finite"))


def _dequantize(out: Any, codes: Any, scales: Any, block: int, adds: int) -> None:
    _check_blocks(codes, scales, block)
    DEQUANTIZE(out.size, out, codes, scales, out.size, block, adds)


def _check_blocks(codes: Any, scales: Any, block: int) -> None:
    if block < 1 or scales.size != -(-codes.size // block):
        raise ValueError(f"scales must hold one for each block of {block} of {codes.size} elements, not {scales.size}")
