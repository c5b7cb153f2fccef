"""Numbers on one device: gradients, sums, optimiser steps, row gathering and text parsing.

`load` picks a back end. Importing this package imports NumPy only.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from hpcps_kernels.cache import Cache, cache_folder
from hpcps_kernels.check import checked
from hpcps_kernels.interface import Array, Kernels, ParseError, SparseRows
from hpcps_kernels.spec import SPECS, Argument, Spec

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

BACK_ENDS = ("reference", "cpu")


@functools.cache
def load(name: str = "cpu") -> Kernels:
    """The kernels of a back end, "reference" or "cpu", with checked arguments; the same table every time.

    Nothing is compiled here: a CPU kernel is compiled, or read from the cache on disk, by its first call.
    Raises ValueError for a back end that there is not.
    """
    if name == "gpu":
        raise ValueError('kernels: the back end "gpu" is not in this version; use "cpu"')
    if name not in BACK_ENDS:
        raise ValueError(f"kernels: no back end {name!r}; there are {', '.join(BACK_ENDS)}")
    names = [field.name for field in fields(Kernels) if field.name != "name"]
    return Kernels(name, **{kernel: _checked(name, kernel) for kernel in names})


def _checked(back_end: str, kernel: str) -> Callable[..., Any]:
    return checked(kernel, _find(back_end, kernel), doc=_find("reference", kernel).__doc__)


def _find(back_end: str, kernel: str) -> Callable[..., Any]:
    module = importlib.import_module(f"hpcps_kernels.{back_end}.{SPECS[kernel].module}")
    found: Callable[..., Any] = getattr(module, kernel)
    return found
