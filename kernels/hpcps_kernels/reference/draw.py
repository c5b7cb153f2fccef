"""Numbers drawn by key, so that a row's first values do not depend on who makes it, when, or beside which others.

The d-th column of a key's row is made of the (d + 1)-th output of SplitMix64 (Steele, Lea and Flood 2014, "Fast
splittable pseudorandom number generators") whose state begins at mix(mix(seed + GAMMA) ^ key). An output becomes a
normal number as M. B. Reynolds and P. Vognsen have it ("A cheap normal distribution approximation", 2021): how many of
32 bits are set, a binomial number, and the difference of two uniform numbers of 16 bits, which makes the binomial's
steps slopes. These are integers up to the last product, so that all machines get the same bits. Mean 0 and variance are
exact; the excess kurtosis is -0.06, the distribution function is off by at most 0.002, no value is beyond 5.95
deviations.
"""

from __future__ import annotations

import math

import numpy as np

from hpcps_kernels.interface import Array

GAMMA = 0x9E3779B97F4A7C15
MIX_A, MIX_B = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
MASK = 2**64 - 1
DEVIATION = 2**16 * math.sqrt(8 + (1 - 2.0**-32) / 6)  # 32 bits: 32 / 4; a difference of uniform numbers: 2 / 12


def init_rows(out: Array, keys: Array, seed: int, zeros: int, scale: float) -> None:
    """Rows of normal numbers of mean 0 and deviation `scale`, by their keys; the first `zeros` columns are 0.

    out (k, W) F is overwritten; keys (k,) int64, any values; seed, any int64. A value is a function of (seed, key,
    column, scale) alone: not of W, of zeros, or of the other keys.
    """
    starts = _mixed(keys.astype(np.uint64) ^ _mixed(np.array([(seed + GAMMA) & MASK], np.uint64)))
    out[:] = 0
    if scale == 0:
        return
    for d in range(max(zeros, 0), out.shape[1]):
        drawn = _mixed(starts + np.uint64(GAMMA * (d + 1) & MASK))
        out[:, d] = _normal(drawn) * (scale / DEVIATION)


def _mixed(z: Array) -> Array:
    """SplitMix64's output of the state z."""
    z = (z ^ z >> np.uint64(30)) * np.uint64(MIX_A)
    z = (z ^ z >> np.uint64(27)) * np.uint64(MIX_B)
    mixed: Array = z ^ z >> np.uint64(31)
    return mixed


def _normal(drawn: Array) -> Array:
    """Integers, int64, of mean 0 and standard deviation DEVIATION."""
    ones = sum((drawn >> np.uint64(bit) & np.uint64(1)).astype(np.int64) for bit in range(32, 64))
    a, b = (drawn & np.uint64(0xFFFF)).astype(np.int64), (drawn >> np.uint64(16) & np.uint64(0xFFFF)).astype(np.int64)
    normal: Array = (ones - 16) * 2**16 + a - b
    return normal
