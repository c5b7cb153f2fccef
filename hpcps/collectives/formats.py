"""Which arrays can be summed, and as what the kernels see them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hpcps.comm.transport import Array

DTYPES = ("float32", "float64", "int64", "float16", "bfloat16")


_FORMATS = {np.dtype(name): "float16" if name == "float16" else "own" for name in DTYPES if name != "bfloat16"}
"""Of NumPy's own dtypes; bfloat16 is ml_dtypes'"""

_FLOAT32, _FLOAT64, _INT64 = (np.dtype(name) for name in ("float32", "float64", "int64"))


class Flat(NamedTuple):
    """A caller's array as kernels take it."""

    x: Array
    """(n,), C-contiguous; 16-bit floats as uint16; the caller's own memory where that can be"""
    format: str
    """own | float16 | bfloat16"""
    is_view: bool
    """Whether it is the caller's memory"""


def is_plain(array: Array) -> bool:
    """Whether kernels take the array, flat, as it is: what costs least to find out. False, too, where its dtype is
    another object than NumPy's own: :func:`flat` looks at more."""
    dtype = array.dtype
    return (dtype is _FLOAT32 or dtype is _FLOAT64 or dtype is _INT64) and array.flags.carray


def flat(array: Array, what: str) -> Flat:
    """``array`` flattened, without a copy where that can be. Raises TypeError, ValueError naming ``what``."""
    format = _FORMATS.get(array.dtype) or ("bfloat16" if array.dtype.name == "bfloat16" else "")
    if not format:
        raise TypeError(f"{what} of {array.dtype}; it can add {', '.join(DTYPES)}")
    is_view = array.flags.carray  # C-contiguous, aligned, writeable
    if is_view:
        x = array if array.ndim == 1 else array.reshape(-1)
    elif array.flags.writeable:
        x = np.array(array, order="C", copy=True).reshape(-1)
    else:
        raise ValueError(f"{what} of a read-only array")
    return Flat(x if format == "own" else x.view(np.uint16), format, is_view)
