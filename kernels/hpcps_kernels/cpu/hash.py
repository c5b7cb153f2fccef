"""MurmurHash3 of many strings, or of pairs of numbers. Bound by multiplications, some 20 in a row a short string."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from hpcps_kernels.cpu._bytes import load_eight, load_four
from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.interface import Array

Word: TypeAlias = Any  # 64 bits without a sign; so is every number below, or Numba would turn to floats
U = np.uint64
MASK_32 = U(2**32 - 1)
A_32, B_32, ADD_32 = U(0xCC9E2D51), U(0x1B873593), U(0xE6546B64)
MIX_A_32, MIX_B_32 = U(0x85EBCA6B), U(0xC2B2AE35)
A_64, B_64 = U(0x87C37B91114253D5), U(0x4CF5AD432745937F)
ADD_1, ADD_2 = U(0x52DCE729), U(0x38495AB5)
MIX_A_64, MIX_B_64 = U(0xFF51AFD7ED558CCD), U(0xC4CEB9FE1A85EC53)
FIVE, EIGHT, SIXTEEN = U(5), U(8), U(16)


@kernel
def murmur3_32(out: Array, data: Array, offsets: Array, seed: int) -> None:
    if seed < 0 or seed > 2**32 - 1:
        raise ValueError("murmur3_32: the seed must be 0 .. 2^32 - 1")
    for i in range(out.shape[0]):
        begin, end = offsets[i], offsets[i + 1]
        if begin < 0 or end < begin or end > data.shape[0]:
            raise IndexError("murmur3_32: offsets must rise within the data")
        out[i] = np.int64(_x86_32(data, begin, end, U(seed)))


@kernel
def murmur3_64(out: Array, data: Array, offsets: Array, seed: int) -> None:
    if seed < 0 or seed > 2**32 - 1:
        raise ValueError("murmur3_64: the seed must be 0 .. 2^32 - 1")
    for i in range(out.shape[0]):
        begin, end = offsets[i], offsets[i + 1]
        if begin < 0 or end < begin or end > data.shape[0]:
            raise IndexError("murmur3_64: offsets must rise within the data")
        out[i] = np.int64(_x64_128(data, begin, end, U(seed)))


@kernel
def hash_pairs(out: Array, fields: Array, values: Array, seed: int, bits: int) -> None:
    if seed < 0 or seed > 2**32 - 1:
        raise ValueError("hash_pairs: the seed must be 0 .. 2^32 - 1")
    if bits < 1 or bits > 64:
        raise ValueError("hash_pairs: bits must be 1 .. 64")
    kept = U(0xFFFFFFFFFFFFFFFF) >> U(64 - bits)
    for i in range(out.shape[0]):
        h1, h2 = _block(U(seed), U(seed), U(fields[i]), U(values[i]))
        out[i] = np.int64(_end(h1, h2, SIXTEEN) & kept)


@part
def _x86_32(data: Array, begin: int, end: int, h: Word) -> Word:
    at = begin
    while at + 4 <= end:
        h = _rotated_32(h ^ _scrambled_32(load_four(data, at)), 13)
        h = (h * FIVE + ADD_32) & MASK_32
        at += 4
    h ^= _scrambled_32(_rest(data, at, end)) ^ U(end - begin)
    h = ((h ^ (h >> U(16))) * MIX_A_32) & MASK_32
    h = ((h ^ (h >> U(13))) * MIX_B_32) & MASK_32
    return h ^ (h >> U(16))


@part
def _scrambled_32(k: Word) -> Word:
    return (_rotated_32((k * A_32) & MASK_32, 15) * B_32) & MASK_32


@part
def _rotated_32(x: Word, by: int) -> Word:
    return ((x << U(by)) | (x >> U(32 - by))) & MASK_32


@part
def _x64_128(data: Array, begin: int, end: int, seed: Word) -> Word:
    """The first 64 bits."""
    h1, h2, at = seed, seed, begin
    while at + 16 <= end:
        h1, h2 = _block(h1, h2, load_eight(data, at), load_eight(data, at + 8))
        at += 16
    middle = min(at + 8, end)
    h1 ^= _first(_rest(data, at, middle))
    h2 ^= _second(_rest(data, middle, end))
    return _end(h1, h2, U(end - begin))


@part
def _rest(data: Array, begin: int, end: int) -> Word:
    """Fewer than 9 bytes as a number, the first the lowest."""
    rest = U(0)
    for at in range(end - 1, begin - 1, -1):
        rest = (rest << EIGHT) | U(data[at])
    return rest


@part
def _block(h1: Word, h2: Word, k1: Word, k2: Word) -> tuple[Word, Word]:
    h1 = (_rotated(h1 ^ _first(k1), 27) + h2) * FIVE + ADD_1
    h2 = (_rotated(h2 ^ _second(k2), 31) + h1) * FIVE + ADD_2
    return h1, h2


@part
def _end(h1: Word, h2: Word, length: Word) -> Word:
    h1, h2 = h1 ^ length, h2 ^ length
    h1 += h2
    h2 += h1
    return fmix64(h1) + fmix64(h2)


@part
def _first(k: Word) -> Word:
    return _rotated(k * A_64, 31) * B_64


@part
def _second(k: Word) -> Word:
    return _rotated(k * B_64, 33) * A_64


@part
def fmix64(h: Word) -> Word:
    h = (h ^ (h >> U(33))) * MIX_A_64
    h = (h ^ (h >> U(33))) * MIX_B_64
    return h ^ (h >> U(33))


@part
def _rotated(x: Word, by: int) -> Word:
    return (x << U(by)) | (x >> U(64 - by))
