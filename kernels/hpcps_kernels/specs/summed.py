"""Optimiser steps whose gradient is a sum that is not there yet."""

from __future__ import annotations

from hpcps_kernels.spec import Spec, read, whole
from hpcps_kernels.specs import update

SPECS = tuple(
    Spec(
        f"{dense.name}_summed",
        "summed",
        (*dense.arrays[:-1], read("gradients", "F", "P", "N"), whole("column"), *dense.scalars),
    )
    for dense in update.SPECS
    if dense.splits == "n"
)
