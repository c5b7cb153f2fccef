"""Numbers on one device: gradients, sums, optimiser steps, row gathering and text parsing.

`load` picks a back end. Importing this package imports NumPy only.
"""

from __future__ import annotations

import functools

from hpcps_kernels.cache import Cache, cache_folder
from hpcps_kernels.interface import Array, Kernels, ParseError, SparseRows
from hpcps_kernels.spec import Argument, Spec
from hpcps_kernels.specs import SPECS

__all__ = [
    "SPECS",
    "Argument",
    "Array",
    "Cache",
    "Kernels",
    "ParseError",
    "SparseRows",
    "Spec",
    "cache_folder",
    "load",
]

BACK_ENDS = ("reference", "cpu", "gpu")


@functools.cache
def load(name: str = "cpu", device: int = 0) -> Kernels:
    """The kernels of a back end, "reference", "cpu" or "gpu", with checked arguments; the same table every time.

    Nothing is compiled here: a kernel is compiled, or read from the cache on disk, by its first call. GPU kernels take
    CuPy's arrays in the memory of GPU `device`. Raises ValueError for a back end that there is not, RuntimeError where
    CuPy, a driver or the GPU is missing.
    """
    if name not in BACK_ENDS:
        raise ValueError(f"kernels: no back end {name!r}; there are {', '.join(BACK_ENDS)}")
    if name == "gpu":
        from hpcps_kernels.gpu.table import table

        return table(device)
    return Kernels(name)
