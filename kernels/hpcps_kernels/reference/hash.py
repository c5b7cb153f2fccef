"""MurmurHash3 (Austin Appleby, SMHasher, public domain): keys that look random, the same on every machine.

Strings lie one behind the other: string i is data[offsets[i]:offsets[i + 1]]. A seed is 0 .. 2^32 - 1.
"""

from __future__ import annotations

import struct
from itertools import pairwise

from hpcps_kernels.interface import Array

MASK_32, MASK_64 = 2**32 - 1, 2**64 - 1


def murmur3_32(out: Array, data: Array, offsets: Array, seed: int) -> None:
    """out (m,) int64 = MurmurHash3_x86_32 of each string, 0 .. 2^32 - 1; data (bytes,) uint8, offsets (m+1,) int64.

    Raises IndexError where offsets fall or leave the data, ValueError for a seed that is none; out then holds anything.
    """
    _check_seed("murmur3_32", seed)
    for i, text in enumerate(_strings("murmur3_32", data, offsets)):
        out[i] = x86_32(text, seed)


def murmur3_64(out: Array, data: Array, offsets: Array, seed: int) -> None:
    """out (m,) int64 = the bits of the first half of MurmurHash3_x64_128 of each string; otherwise as `murmur3_32`."""
    _check_seed("murmur3_64", seed)
    for i, text in enumerate(_strings("murmur3_64", data, offsets)):
        out[i] = _signed(x64_128(text, seed)[0])


def hash_pairs(out: Array, fields: Array, values: Array, seed: int, bits: int) -> None:
    """out (m,) int64 = the key of each (field, value): the lowest `bits` (1 .. 64) bits of `murmur3_64` of 16 bytes.

    These are the field's 8 and the value's 8, lowest byte first. Below 64 bits keys are 0 .. 2^bits - 1. Raises
    ValueError for a seed or bits that are none.
    """
    _check_seed("hash_pairs", seed)
    if not 1 <= bits <= 64:
        raise ValueError("hash_pairs: bits must be 1 .. 64")
    for i, pair in enumerate(zip(fields.tolist(), values.tolist(), strict=True)):
        out[i] = _signed(x64_128(struct.pack("<qq", *pair), seed)[0] & (2**bits - 1))


def x86_32(text: bytes, seed: int) -> int:
    """MurmurHash3_x86_32."""
    h = seed
    whole = len(text) // 4 * 4
    for (k,) in struct.iter_unpack("<I", text[:whole]):
        h = (_rotated(h ^ _scrambled_32(k), 13, 32) * 5 + 0xE6546B64) & MASK_32
    h ^= _scrambled_32(int.from_bytes(text[whole:], "little")) ^ len(text)
    h = ((h ^ h >> 16) * 0x85EBCA6B) & MASK_32
    h = ((h ^ h >> 13) * 0xC2B2AE35) & MASK_32
    return h ^ h >> 16


def _scrambled_32(k: int) -> int:
    return (_rotated(k * 0xCC9E2D51 & MASK_32, 15, 32) * 0x1B873593) & MASK_32


def x64_128(text: bytes, seed: int) -> tuple[int, int]:
    """MurmurHash3_x64_128 as two numbers of 64 bits."""
    h1 = h2 = seed
    whole = len(text) // 16 * 16
    for k1, k2 in struct.iter_unpack("<QQ", text[:whole]):
        h1 = ((_rotated(h1 ^ _first(k1), 27, 64) + h2) * 5 + 0x52DCE729) & MASK_64
        h2 = ((_rotated(h2 ^ _second(k2), 31, 64) + h1) * 5 + 0x38495AB5) & MASK_64
    h1 ^= _first(int.from_bytes(text[whole : whole + 8], "little")) ^ len(text)
    h2 ^= _second(int.from_bytes(text[whole + 8 :], "little")) ^ len(text)
    h1 = (h1 + h2) & MASK_64
    h2 = (h1 + h2) & MASK_64
    h1, h2 = fmix64(h1), fmix64(h2)
    h1 = (h1 + h2) & MASK_64
    return h1, (h1 + h2) & MASK_64


def _first(k: int) -> int:
    return (_rotated(k * 0x87C37B91114253D5 & MASK_64, 31, 64) * 0x4CF5AD432745937F) & MASK_64


def _second(k: int) -> int:
    return (_rotated(k * 0x4CF5AD432745937F & MASK_64, 33, 64) * 0x87C37B91114253D5) & MASK_64


def fmix64(h: int) -> int:
    h = ((h ^ h >> 33) * 0xFF51AFD7ED558CCD) & MASK_64
    h = ((h ^ h >> 33) * 0xC4CEB9FE1A85EC53) & MASK_64
    return h ^ h >> 33


def _rotated(x: int, by: int, bits: int) -> int:
    return (x << by | x >> (bits - by)) & ((1 << bits) - 1)


def _signed(h: int) -> int:
    return h - 2**64 if h >= 2**63 else h


def _check_seed(kernel: str, seed: int) -> None:
    if not 0 <= seed <= MASK_32:
        raise ValueError(f"{kernel}: the seed must be 0 .. 2^32 - 1")


def _strings(kernel: str, data: Array, offsets: Array) -> list[bytes]:
    bounds = offsets.tolist()
    if bounds[0] < 0 or bounds[-1] > len(data) or bounds != sorted(bounds):
        raise IndexError(f"{kernel}: offsets must rise within the data")
    text = data.tobytes()
    return [text[low:high] for low, high in pairwise(bounds)]
