"""Which arrays can be summed, and as what the kernels see them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hpcps.comm.transport import Array

DTYPES = ("float32", "float64", "int64", "float16", "bfloat16")


class Flat(NamedTuple):
    """A caller's array as kernels take it."""

    x: Array
    """(n,), C-contiguous; 16-bit floats as uint16; the caller's own memory where that can be"""
    format: str
    """own | float16 | bfloat16"""
    is_view: bool
    """Whether it is the caller's memory"""


def flat(array: Array, what: str) -> Flat:
    """``array`` flattened, without a copy where that can be. Raises TypeError, ValueError naming ``what``."""
    name = array.dtype.name
    if name not in DTYPES or not array.dtype.isnative:
        raise TypeError(f"{what} of {array.dtype}; it can add {', '.join(DTYPES)}")
    if not array.flags.writeable:
        raise ValueError(f"{what} of a read-only array")
    x = array if array.ndim == 1 and array.flags.c_contiguous else np.ascontiguousarray(array).reshape(-1)
    is_view = x is array or np.may_share_memory(x, array)
    if name in ("float16", "bfloat16"):
        return Flat(x.view(np.uint16), name, is_view)
    return Flat(x, "own", is_view)
