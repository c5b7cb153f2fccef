"""Ranks of one node that meet in memory."""

from __future__ import annotations

from hpcps_kernels.spec import Spec, inout, out, read, whole

SPECS = (
    Spec(
        "deposit",
        "meet",
        (
            out("slot", "A", "n"),
            inout("flags", "int64", "P", "8"),
            read("x", "A", "n"),
            whole("rank"),
            whole("round"),
        ),
    ),
    Spec(
        "collect",
        "meet",
        (
            out("out", "A", "n"),
            read("slots", "A", "P", "n"),
            read("flags", "int64", "P", "8"),
            whole("round"),
            whole("spins"),
        ),
        accumulates="A",
    ),
)
