from __future__ import annotations

import numpy as np

from kernel_cases import Case

SIZES = ((0, 0), (1, 0), (1, 31), (40, 500), (1000, 20_000))  # strings, bytes
SEEDS = (0, 7, 2**32 - 1)


def _strings(kernel: str, m: int, size: int, seed: int) -> Case:
    make = {
        "data": lambda shape, dtype, rng: rng.integers(0, 256, shape),
        "offsets": lambda shape, dtype, rng: np.sort(np.r_[0, rng.integers(0, size + 1, m - 1), size] if m else [0]),
    }
    return Case(kernel, {"m": m, "bytes": size}, scalars={"seed": seed}, make=make)


def _pairs(m: int, seed: int, bits: int) -> Case:
    make = {name: lambda shape, dtype, rng: rng.integers(-(2**63), 2**63 - 1, shape) for name in ("fields", "values")}
    return Case("hash_pairs", {"m": m}, scalars={"seed": seed, "bits": bits}, make=make, note=str(bits))


CASES = [
    *(_strings(kernel, *size, seed) for kernel in ("murmur3_32", "murmur3_64") for size in SIZES for seed in SEEDS),
    *(_pairs(m, seed, bits) for m in (0, 1, 7, 300) for seed in SEEDS for bits in (1, 20, 63, 64)),
]
