"""Arrays whose data start at a cache line.

NumPy's own start at any multiple of 16 bytes; then many vectors that a kernel reads lie in two lines, which made the
gradient of a softmax model a fifth slower.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

Array = np.ndarray[Any, Any]
LINE_BYTES = 64


def empty(shape: int | tuple[int, ...], dtype: DTypeLike) -> Array:
    """An uninitialised array, C-contiguous."""
    shape = (shape,) if isinstance(shape, int) else shape
    size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(size_bytes + LINE_BYTES, np.uint8)
    start = -raw.ctypes.data % LINE_BYTES
    return raw[start : start + size_bytes].view(dtype).reshape(shape)


def zeros(shape: int | tuple[int, ...], dtype: DTypeLike) -> Array:
    """An array of zeros, C-contiguous."""
    array = empty(shape, dtype)
    array.fill(0)
    return array
