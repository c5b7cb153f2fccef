"""Fewer bytes for the wire: half precision, 8 bits, the largest elements.

What a code leaves out can be kept and sent later ("error feedback", Stich, Cordonnier & Jaggi 2018): `top_k` and
`quantize_int8_feedback` keep it in `residual`.
"""

from __future__ import annotations

import numpy as np

from hpcps_kernels.interface import Array

CODE_MAX = np.float32(127)
ROUNDINGS = ("nearest", "stochastic")
MASK = 2**64 - 1


def to_bfloat16(out: Array, x: Array) -> None:
    """The upper 16 bits of float32, rounded to nearest, half to even; out (n,) uint16 is overwritten, x (n,) float32.

    What is larger than the largest bfloat16 by half a step becomes inf; a nan stays a nan, made quiet.
    """
    bits = x.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
    out[:] = np.where(np.isnan(x), (bits >> 16) | 0x40, rounded)


def from_bfloat16(out: Array, x: Array) -> None:
    """The float32 of the same value: exact; out (n,) float32 is overwritten, x (n,) uint16."""
    out.view(np.uint32)[:] = x.astype(np.uint32) << 16


def to_float16(out: Array, x: Array) -> None:
    """IEEE half precision, rounded to nearest, half to even; out (n,) uint16 is overwritten, x (n,) float32.

    65520 and more become inf, 2**-24 is the smallest positive half; a nan stays a nan.
    """
    with np.errstate(over="ignore", under="ignore"):
        out[:] = x.astype(np.float16).view(np.uint16)


def from_float16(out: Array, x: Array) -> None:
    """The float32 of the same value: exact; out (n,) float32 is overwritten, x (n,) uint16 holds IEEE halves."""
    out[:] = x.view(np.float16)


def quantize_int8(codes: Array, scales: Array, x: Array, block: int, rounding: int, seed: int, counter: int) -> None:
    """Codes of 8 bits and a scale for each `block` elements: x is about codes * scale.

    codes (n,) int8 and scales (ceil(n / block),) float32 are overwritten; x (n,) float32. A block's scale is
    max|x| / 127, 0 where that rounds to 0, and its codes are x / scale, in -127..127, rounded "nearest" (half to
    even), or "stochastic": down, or up with the probability of the fraction, so that the mean is x / scale.

    Element i draws from (seed, counter + i) alone, so that slices of whole blocks get the same codes, each with
    counter moved on by its start. Its draw is a half of word (counter + i) // 2 of SplitMix64 (Steele, Lea & Flood
    2014), begun at the mixed seed: the lower 32 bits for even counter + i, else the upper, of which 24 are used.

    Raises ValueError where the scales do not fit the blocks or x is not finite; codes may have been written then.
    """
    _check_blocks(codes, scales, block)
    _check_finite(x)
    draws = _uniform(seed, counter, len(x)) if ROUNDINGS[rounding] == "stochastic" else None
    for b in range(len(scales)):
        part = slice(b * block, (b + 1) * block)
        scales[b] = np.abs(x[part]).max() / CODE_MAX
        if scales[b] == 0:
            codes[part] = 0
            continue
        ratio = x[part] / scales[b]
        below = np.floor(ratio)
        whole = np.rint(ratio) if draws is None else below + (draws[part] < ratio - below)
        codes[part] = np.clip(whole, -CODE_MAX, CODE_MAX)


def quantize_int8_feedback(
    codes: Array, scales: Array, residual: Array, x: Array, block: int, rounding: int, seed: int, counter: int
) -> None:
    """`quantize_int8` of residual + x; residual (n,) float32 becomes what the codes leave out of it.

    Raises as it does; residual may hold residual + x then.
    """
    _check_blocks(codes, scales, block)
    residual += x
    quantize_int8(codes, scales, residual, block, rounding, seed, counter)
    sent = np.empty_like(residual)
    dequantize_int8(sent, codes, scales, block)
    residual -= sent


def dequantize_int8(out: Array, codes: Array, scales: Array, block: int) -> None:
    """out = codes * scale of their block; out (n,) float32 is overwritten, codes (n,) int8.

    scales (ceil(n / block),) float32; ValueError where they do not fit.
    """
    _check_blocks(codes, scales, block)
    out[:] = codes * np.repeat(scales, block)[: len(codes)]


def dequantize_add_int8(out: Array, codes: Array, scales: Array, block: int) -> None:
    """out += codes * scale of their block; out (n,) float32 is updated, codes (n,) int8.

    scales (ceil(n / block),) float32; ValueError where they do not fit. The product is rounded before it is added:
    the same bits as `dequantize_int8` and `add_into`.
    """
    _check_blocks(codes, scales, block)
    out += codes * np.repeat(scales, block)[: len(codes)]


def top_k(index: Array, values: Array, residual: Array, gradient: Array) -> None:
    """residual += gradient; its k elements of largest magnitude are taken out, and 0 left in their places.

    index (k,) int64 and values (k,) F are overwritten, in ascending order of index; residual, gradient (n,) F. Of
    equal magnitudes the lower index is taken. Raises ValueError where k > n, and where the sum holds a nan, after
    it was written to residual.
    """
    k = len(index)
    if k > len(residual):
        raise ValueError(f"top_k: k = {k} is more than n = {len(residual)}")
    residual += gradient
    if np.isnan(residual).any():
        raise ValueError("top_k: residual + gradient holds a nan")
    index[:] = np.sort(np.argsort(-np.abs(residual), kind="stable")[:k])
    values[:] = residual[index]
    residual[index] = 0


def _check_blocks(codes: Array, scales: Array, block: int) -> None:
    if block < 1 or len(scales) != -(-len(codes) // block):
        raise ValueError(f"scales must hold one for each block of {block} of {len(codes)} elements, not {len(scales)}")


def _check_finite(x: Array) -> None:
    if not np.isfinite(x).all():
        raise ValueError("quantize_int8: an element is not finite")


def _uniform(seed: int, counter: int, n: int) -> Array:
    """n multiples of 2**-24 in [0, 1), float32."""
    at = np.arange(n, dtype=np.uint64) + np.uint64(counter & MASK)
    start = _mixed(np.array([seed & MASK], np.uint64))
    words = _mixed(start + (at >> np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    halves = np.where(at & np.uint64(1), words >> np.uint64(32), words & np.uint64(0xFFFFFFFF))
    draws: Array = (halves >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)
    return draws


def _mixed(z: Array) -> Array:
    """SplitMix64's finaliser, "Mix13" of Stafford 2011."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z
