"""MurmurHash3 against published vectors, SMHasher's verification values and scikit-learn."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hpcps_kernels import Kernels, load
from hpcps_kernels.reference.hash import x64_128, x86_32
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils import murmurhash3_32

BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]
KEYS = [bytes(range(n)) for n in range(256)]


def hashed(kernel, texts: list[bytes], seed: int) -> np.ndarray:
    out = np.empty(len(texts), np.int64)
    offsets = np.cumsum([0, *map(len, texts)])
    kernel(out, np.frombuffer(b"".join(texts), np.uint8), offsets, seed)
    return out


def verification(digest) -> int:
    """SMHasher's test of an implementation: keys of 0 .. 255 bytes, then their digests as one key."""
    return int.from_bytes(digest(b"".join(digest(key, 256 - len(key)) for key in KEYS), 0)[:4], "little")


def test_verification_values() -> None:
    assert verification(lambda text, seed: struct.pack("<I", x86_32(text, seed))) == 0xB0F57EE3
    assert verification(lambda text, seed: struct.pack("<QQ", *x64_128(text, seed))) == 0x6384BA69


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_kernels_hash_as_what_was_verified(kernels: Kernels) -> None:
    for n, key in enumerate(KEYS):
        assert hashed(kernels.murmur3_32, [key], 256 - n)[0] == x86_32(key, 256 - n)
        assert int(hashed(kernels.murmur3_64, [key], 256 - n)[0]) % 2**64 == x64_128(key, 256 - n)[0]


PUBLISHED = [  # Wikipedia, "MurmurHash"
    (b"", 0, 0),
    (b"", 1, 0x514E28B7),
    (b"", 0xFFFFFFFF, 0x81F16F39),
    (b"test", 0, 0xBA6BD213),
    (b"test", 0x9747B28C, 0x704B81DC),
    (b"Hello, world!", 0, 0xC0363E43),
    (b"Hello, world!", 0x9747B28C, 0x24884CBA),
    (b"The quick brown fox jumps over the lazy dog", 0, 0x2E4FF723),
    (b"The quick brown fox jumps over the lazy dog", 0x9747B28C, 0x2FA826CD),
]


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_published_vectors(kernels: Kernels) -> None:
    for text, seed, wanted in PUBLISHED:
        assert hashed(kernels.murmur3_32, [text], seed)[0] == wanted


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(0, 2**32 - 1))
def test_scikit_learn_agrees(texts: list[bytes], seed: int) -> None:
    wanted = [murmurhash3_32(text, seed, positive=True) for text in texts]
    assert hashed(load("cpu").murmur3_32, texts, seed).tolist() == wanted


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_pairs_are_strings_of_16_bytes(kernels: Kernels) -> None:
    pairs = [(0, 0), (1, -1), (2**63 - 1, -(2**63)), (3, 77)]
    whole = hashed(kernels.murmur3_64, [struct.pack("<qq", *pair) for pair in pairs], 9)
    fields, values = (np.array(column) for column in zip(*pairs, strict=True))
    for bits in (1, 8, 32, 63, 64):
        out = np.empty(4, np.int64)
        kernels.hash_pairs(out, fields, values, 9, bits)
        assert out.tolist() == [key % 2**bits if bits < 64 else key for key in whole.tolist()]


def test_keys_fill_their_range_evenly() -> None:
    out = np.empty(1 << 16, np.int64)
    load("cpu").hash_pairs(out, np.arange(out.size) % 7, np.arange(out.size), 0, 8)
    counts = np.bincount(out, minlength=256)
    assert ((counts - 256) ** 2 / 256).sum() < 350  # chi-square with 255 degrees of freedom: 1 in 25,000


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_what_is_refused(kernels: Kernels) -> None:
    out, data = np.empty(2, np.int64), np.zeros(5, np.uint8)
    for kernel in (kernels.murmur3_32, kernels.murmur3_64):
        for offsets in ([-1, 0, 5], [0, 3, 2], [0, 3, 6], [0, 6, 5]):
            with pytest.raises(IndexError, match="offsets must rise within the data"):
                kernel(out, data, np.array(offsets), 0)
        for seed in (-1, 2**32):
            with pytest.raises(ValueError, match="the seed must be"):
                kernel(out, data, np.array([0, 1, 2]), seed)
    for seed, bits, message in ((-1, 8, "the seed must be"), (0, 0, "bits must be"), (0, 65, "bits must be")):
        with pytest.raises(ValueError, match=f"hash_pairs: {message}"):
            kernels.hash_pairs(out, out.copy(), out.copy(), seed, bits)
