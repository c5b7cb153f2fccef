"""Ranks of one node that meet in memory."""

from __future__ import annotations

from hpcps_kernels.spec import MEET_OPERATIONS, WIDE_FORMATS, Spec, choice, inout, out, read, whole

SPECS = (
    Spec(
        "meet",
        "meet",
        (
            inout("x", "W", "N"),
            out("work", "uint8", "w"),
            read("bounds", "int64", "b?"),
            read("program", "int64", "K?", "3"),
            inout("desk", "int64", "d"),
            choice("operation", *MEET_OPERATIONS),
            choice("format", *WIDE_FORMATS),
            whole("count"),
            whole("number"),
            whole("state"),
            whole("spins"),
        ),
        accumulates="W",
    ),
    Spec(
        "meet_sum",
        "meet",
        (
            inout("x", "W", "N"),
            out("work", "uint8", "w"),
            inout("desk", "int64", "d"),
            choice("format", *WIDE_FORMATS),
            whole("number"),
            whole("spins"),
        ),
        accumulates="W",
    ),
)
