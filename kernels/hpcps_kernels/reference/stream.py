"""Copies for others: to memory that other cores have read, and will read again."""

from __future__ import annotations

from hpcps_kernels.interface import Array


def stream(out: Array, x: Array) -> None:
    """out = x, both (n,) F, which share no memory. Written past the caches where the CPU can do so, and seen by others
    before what is written after the call.

    A core that writes to lines which a core far away has read must first have them taken away from there, one by one.
    """
    out[:] = x
