"""Optimiser steps over rows whose state lies beside them."""

from __future__ import annotations

from hpcps_kernels.spec import Spec, inout, read
from hpcps_kernels.specs import update

ARRAYS = (inout("table", "F", "N", "P"), read("gradient", "F", "k", "W"), read("index", "int64", "k"))


def states(rows: Spec) -> int:
    """How many arrays of state a kernel by rows has."""
    return sum(argument.is_written for argument in rows.arrays) - 1


SPECS = tuple(
    Spec(rows.name.replace("_rows", "_packed"), "packed", (*ARRAYS, *rows.scalars), splits="k")
    for rows in update.SPECS
    if rows.splits == "k" and states(rows)
)
