"""Sums and maxima of flat buffers, in floating point and in fixed point, where a sum may take any order."""

from __future__ import annotations

import numpy as np

from hpcps_kernels.interface import Array


def add_into(out: Array, x: Array) -> None:
    """out += x; both (n,) of one dtype: float32, float64 or int64."""
    out += x


def max_abs(x: Array) -> float:
    """The largest magnitude in x (n,) F: 0 where x is empty, inf if it holds one, nan if it holds any."""
    return float(np.max(np.abs(x), initial=0.0))


def add_fixed(out: Array, x: Array, scale: float) -> None:
    """out += rint(x * scale), the product and its rounding (half to even) in float64; out (n,) int64, x (n,)
    F.

    The caller chooses scale so that nothing leaves int64.
    """
    out += np.rint(x.astype(np.float64) * scale).astype(np.int64)


def from_fixed(out: Array, x: Array, scale: float) -> None:
    """out = x * scale, computed in float64 and then rounded to F; out (n,) F is overwritten, x (n,) int64."""
    out[:] = x.astype(np.float64) * scale
