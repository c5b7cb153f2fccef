"""Sums and maxima of flat buffers."""

from __future__ import annotations

import numpy as np

from hpcps_kernels.cpu._jit import kernel
from hpcps_kernels.interface import Array


@kernel
def add_into(out: Array, x: Array) -> None:
    for i in range(out.shape[0]):
        out[i] += x[i]


def max_abs(x: Array) -> float:
    bits = x.view(f"i{x.itemsize}")
    largest = np.zeros(1, bits.dtype)
    max_magnitude(largest, bits)
    return float(largest.view(x.dtype)[0])


@kernel
def max_magnitude(out: Array, bits: Array) -> None:
    # Without their sign, floats sort as the integers of the same bits, inf above all numbers and nan above
    # inf.
    magnitude = out.dtype.type(np.iinfo(out.dtype).max)
    largest = out[0]
    for i in range(bits.shape[0]):
        largest = max(largest, bits[i] & magnitude)
    out[0] = largest


@kernel
def add_fixed(out: Array, x: Array, scale: float) -> None:
    for i in range(out.shape[0]):
        out[i] += np.int64(np.rint(np.float64(x[i]) * scale))


@kernel
def from_fixed(out: Array, x: Array, scale: float) -> None:
    for i in range(out.shape[0]):
        out[i] = np.float64(x[i]) * scale
