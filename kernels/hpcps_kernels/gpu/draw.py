"""Numbers drawn by key."""

from __future__ import annotations

from typing import Any

from hpcps_kernels.gpu._launch import FLOATS, THREADS, Launch, strides
from hpcps_kernels.reference.draw import DEVIATION

INIT_ROWS = Launch("draw", "init_rows", "T *, const i64 *, i64, i64, i64, i64, double", strides(THREADS), {"T": FLOATS})


def init_rows(out: Any, keys: Any, seed: int, zeros: int, scale: float) -> None:
    INIT_ROWS(out.size, out, keys, *out.shape, seed, zeros, scale / DEVIATION, T=out.dtype)


def as_signed(number: int) -> int:
    """The lower 64 bits as kernels take them."""
    return (number + 2**63) % 2**64 - 2**63
