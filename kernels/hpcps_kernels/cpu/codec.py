"""Fewer bytes for the wire. Casts and codes of 8 bits are bound by memory, random draws by their multiplications."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcps_kernels.cpu._half import bfloat16_of, from_half, to_half
from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.cpu._prefetch import LINE_BYTES, prefetch_at
from hpcps_kernels.interface import Array

Number = Any  # of the width that the compiler is told

CODE_MAX = np.float32(127)
STOCHASTIC = 1  # the position of its name in the spec
NOTHING = np.empty(0, np.float32)  # no residual

LINE = LINE_BYTES // 4  # numbers of float32
DRAWS = 1024  # that are made at a time
MASK = 2**64 - 1
GOLDEN, FIRST, SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
ONE, BY_27, BY_30, BY_31 = (np.uint64(n) for n in (1, 27, 30, 31))

FINITE_BITS = np.int32(0x7F7FFFFF)  # of the largest float32
MAGNITUDE = np.int32(0x7FFFFFFF)  # all but the sign

COUNTED_BITS = {4: 12, 8: 15}  # exponent and 4 bits of the significand tell magnitudes apart at first, by item size
GROUP = 64  # elements that are passed over together where none is large


@kernel
def to_bfloat16(out: Array, x: Array) -> None:
    for i in range(out.shape[0]):
        out[i] = bfloat16_of(x[i])


@kernel
def from_bfloat16(out: Array, x: Array) -> None:
    bits = out.view(np.uint32)
    for i in range(x.shape[0]):
        bits[i] = np.uint32(x[i]) << np.uint32(16)


@kernel
def to_float16(out: Array, x: Array) -> None:
    for i in range(out.shape[0]):
        out[i] = to_half(x[i])


@kernel
def from_float16(out: Array, x: Array) -> None:
    for i in range(out.shape[0]):
        out[i] = from_half(x[i])


def quantize_int8(codes: Array, scales: Array, x: Array, block: int, rounding: int, seed: int, counter: int) -> None:
    _quantize(codes, scales, NOTHING, x, block, rounding, seed, counter)


def quantize_int8_feedback(
    codes: Array, scales: Array, residual: Array, x: Array, block: int, rounding: int, seed: int, counter: int
) -> None:
    _quantize(codes, scales, residual, x, block, rounding, seed, counter)


def _quantize(
    codes: Array, scales: Array, residual: Array, x: Array, block: int, rounding: int, seed: int, counter: int
) -> None:
    _check_blocks(codes, scales, block)
    start, first = _signed(_mixed_number(seed & MASK)), _signed(counter & MASK)
    if not quantize_blocks(codes, scales, residual, x, block, rounding == STOCHASTIC, start, first):
        raise ValueError("quantize_int8: an element is not finite")


def dequantize_int8(out: Array, codes: Array, scales: Array, block: int) -> None:
    _check_blocks(codes, scales, block)
    dequantize_blocks(out, codes, scales, block)


def _check_blocks(codes: Array, scales: Array, block: int) -> None:
    if block < 1 or len(scales) != -(-len(codes) // block):
        raise ValueError(f"scales must hold one for each block of {block} of {len(codes)} elements, not {len(scales)}")


def _signed(word: int) -> int:
    """The int64 of the same bits: Numba would compile the kernel anew for larger ones."""
    return word - (word >> 63 << 64)


def _mixed_number(z: int) -> int:
    z = (z ^ (z >> 30)) * int(FIRST) & MASK
    z = (z ^ (z >> 27)) * int(SECOND) & MASK
    return z ^ (z >> 31)


@kernel
def quantize_blocks(
    codes: Array,
    scales: Array,
    residual: Array,
    x: Array,
    block: int,
    stochastic: bool,
    start: int,
    counter: int,
) -> bool:
    """Whether all is finite; block by block, each of which stays in a cache."""
    with_residual = residual.shape[0] > 0
    source = residual if with_residual else x
    bits, words = source.view(np.int32), np.empty(DRAWS // 2 + 1, np.uint64)
    draws = words.view(np.uint32)
    for b in range(scales.shape[0]):
        lo, hi = np.uintp(b * block), np.uintp(min((b + 1) * block, x.shape[0]))
        largest = _add(residual, x, lo, hi) if with_residual else _largest_magnitude(bits, lo, hi, MAGNITUDE)
        if largest > FINITE_BITS:
            return False
        scale = _as_float(largest) / CODE_MAX
        scales[b] = scale
        if scale == 0:
            codes[lo:hi] = 0
        elif stochastic:
            _round_at_random(codes, source, lo, hi, scale, words, draws, np.uint64(start), np.uint64(counter))
            for i in range(lo, hi if with_residual else lo):
                residual[i] -= np.float32(codes[i]) * scale
        elif with_residual:
            _come_near(residual, x, hi, min(hi + (hi - lo), np.uintp(x.shape[0])))
            for i in range(lo, hi):
                codes[i] = _code(np.rint(residual[i] / scale))
                residual[i] -= np.float32(codes[i]) * scale
        else:
            for i in range(lo, hi):
                codes[i] = _code(np.rint(source[i] / scale))
    return True


@part
def _add(residual: Array, x: Array, lo: Number, hi: Number) -> Number:
    """residual += x; returns the bits of the largest magnitude."""
    largest = np.int32(0)
    for i in range(lo, hi):
        total = residual[i] + x[i]
        residual[i] = total
        largest = max(largest, np.float32(total).view(np.int32) & MAGNITUDE)
    return largest


@part
def _come_near(residual: Array, x: Array, lo: Number, hi: Number) -> None:
    """The next block's lines, while this one is rounded: a block is too short for the CPU to foresee the next."""
    for i in range(lo, hi, np.uintp(LINE)):
        prefetch_at(residual, i)
        prefetch_at(x, i)


@part
def _as_float(bits: Number) -> Number:
    return np.int32(bits).view(np.float32)


@part
def _code(whole: Number) -> Number:
    return np.int8(min(max(np.int32(whole), np.int32(-127)), np.int32(127)))


@part
def _round_at_random(
    codes: Array,
    source: Array,
    lo: Number,
    hi: Number,
    scale: Number,
    words: Array,
    draws: Array,
    start: Number,
    counter: Number,
) -> None:
    one, zero, step = np.float32(1), np.float32(0), np.float32(2.0**-24)
    for begin in range(lo, hi, np.uintp(DRAWS)):
        end = min(begin + np.uintp(DRAWS), hi)
        first = counter + begin
        z = start + (first >> ONE) * GOLDEN
        for j in range((end - begin) // np.uint64(2) + ONE):
            words[j] = _mixed(z)
            z += GOLDEN
        half = first & ONE  # in memory a word's lower half comes first
        for i in range(begin, end):
            ratio = source[i] / scale
            below = np.floor(ratio)
            draw = np.float32(draws[half + (i - begin)] >> np.uint32(8)) * step
            codes[i] = _code(below + (one if draw < ratio - below else zero))


@part
def _mixed(z: Number) -> Number:
    z = (z ^ (z >> BY_30)) * FIRST
    z = (z ^ (z >> BY_27)) * SECOND
    return z ^ (z >> BY_31)


@kernel
def dequantize_blocks(out: Array, codes: Array, scales: Array, block: int) -> None:
    for b in range(scales.shape[0]):
        scale = scales[b]
        for i in range(np.uintp(b * block), np.uintp(min((b + 1) * block, out.shape[0]))):
            out[i] = np.float32(codes[i]) * scale


def dequantize_add_int8(out: Array, codes: Array, scales: Array, block: int) -> None:
    _check_blocks(codes, scales, block)
    dequantize_add_blocks(out, codes, scales, block)


@kernel
def dequantize_add_blocks(out: Array, codes: Array, scales: Array, block: int) -> None:
    for b in range(scales.shape[0]):
        scale = scales[b]
        for i in range(np.uintp(b * block), np.uintp(min((b + 1) * block, out.shape[0]))):
            out[i] += np.float32(codes[i]) * scale


def top_k(index: Array, values: Array, residual: Array, gradient: Array) -> None:
    k, size = len(index), residual.itemsize
    if k > len(residual):
        raise ValueError(f"top_k: k = {k} is more than n = {len(residual)}")
    bits = residual.view(f"i{size}")
    shift = 8 * size - 1 - COUNTED_BITS[size]
    found = np.zeros(3, np.int64)
    add_and_count(found, residual, gradient, bits, k, shift, 1 << COUNTED_BITS[size])
    largest, lowest_class, count = found.tolist()
    if largest > int(np.array(np.inf, residual.dtype).view(bits.dtype)):
        raise ValueError("top_k: residual + gradient holds a nan")
    if k == 0:
        return
    candidates = np.empty(count + 1, np.int64)  # one to spare: what is no candidate is written, too, then overwritten
    collect_large(candidates, bits, lowest_class << shift)
    candidates = candidates[:count]
    magnitudes = bits[candidates] & np.iinfo(bits.dtype).max
    last = np.partition(magnitudes, count - k)[count - k]
    take_out(index, values, residual, candidates, magnitudes, last, k - np.count_nonzero(magnitudes > last))


@kernel
def add_and_count(
    found: Array, residual: Array, gradient: Array, bits: Array, k: int, shift: int, classes: int
) -> None:
    """residual += gradient. found: the largest magnitude, as bits; the class (upper bits) of the k-th; how many are
    in this class and those above.

    The class of the k-th among those seen only ever rises, and groups without an element that high need not be
    counted: where k is small, few are.
    """
    magnitude = bits.dtype.type(np.iinfo(bits.dtype).max)
    counts = np.zeros(classes, np.int64)
    largest, lowest, above = bits.dtype.type(0), 0, 0
    for lo in range(0, residual.shape[0], GROUP):
        hi = min(lo + GROUP, residual.shape[0])
        for i in range(np.uintp(lo), np.uintp(hi)):
            residual[i] += gradient[i]
        group = _largest_magnitude(bits, lo, hi, magnitude)
        if group >> shift >= lowest:
            largest = max(largest, group)
            for i in range(np.uintp(lo), np.uintp(hi)):
                seen = (bits[i] & magnitude) >> shift
                counts[np.uintp(seen)] += 1
                above += seen >= lowest
            while above - counts[lowest] >= k and lowest + 1 < classes:
                above -= counts[lowest]
                lowest += 1
    found[0], found[1], found[2] = largest, lowest, above


@kernel
def collect_large(candidates: Array, bits: Array, least: int) -> None:
    """The indexes of magnitudes of at least `least`, which fill `candidates` but for the last place."""
    magnitude = bits.dtype.type(np.iinfo(bits.dtype).max)
    found = np.uintp(0)
    for lo in range(0, bits.shape[0], GROUP):
        hi = min(lo + GROUP, bits.shape[0])
        if _largest_magnitude(bits, lo, hi, magnitude) >= least:
            for i in range(np.uintp(lo), np.uintp(hi)):
                candidates[found] = i
                found += np.uintp(bits[i] & magnitude >= least)


@part
def _largest_magnitude(bits: Array, lo: int, hi: int, magnitude: int) -> int:
    """As the bits of a float: without the sign (`magnitude` is all else) they sort as integers, nan above inf."""
    largest = magnitude & ~magnitude
    for i in range(np.uintp(lo), np.uintp(hi)):
        largest = max(largest, bits[i] & magnitude)
    return largest


@kernel
def take_out(
    index: Array, values: Array, residual: Array, candidates: Array, magnitudes: Array, last: int, equal: int
) -> None:
    """The candidates above `last`, and the first `equal` ones that equal it."""
    taken = 0
    for c in range(candidates.shape[0]):
        is_equal = magnitudes[c] == last
        if magnitudes[c] > last or (is_equal and equal > 0):
            equal -= is_equal
            i = candidates[c]
            index[taken], values[taken] = i, residual[i]
            residual[i] = 0
            taken += 1
