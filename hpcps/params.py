"""Named parameters and the one flat buffer that they share.

Collectives, shards and optimisers see the flat buffer; models see names and shapes. A gradient has the same layout.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]


class Params(Mapping[str, Array]):
    """Arrays by name, each a view of ``flat`` (one-dimensional, C-contiguous, in the order of the names given).

    >>> p = Params({"weight": (2, 3), "bias": (2,)}, np.zeros(8, np.float32))
    >>> p["bias"][:] = 1
    >>> p.flat.tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    """

    def __init__(self, shapes: Shapes, flat: Array) -> None:
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.flat = flat
        if flat.shape != (count(shapes),):
            raise ValueError(f"{count(shapes)} parameters do not fit a buffer of shape {flat.shape}")
        self._arrays = _views(self.shapes, flat)

    @classmethod
    def zeros(cls, shapes: Shapes, dtype: DTypeLike) -> Params:
        """Parameters of the given shapes, all zero."""
        return cls(shapes, np.zeros(count(shapes), dtype))

    def on(self, flat: Array) -> Params:
        """The same names and shapes over another buffer."""
        return Params(self.shapes, flat)

    def read_only(self) -> Params:
        """The same memory, not writable."""
        flat = self.flat.view()
        flat.flags.writeable = False
        return self.on(flat)

    def sha256(self) -> str:
        """SHA-256 over the parameters in name order, as little-endian bytes."""
        digest = hashlib.sha256()
        for name in sorted(self._arrays):
            array = self._arrays[name]
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def count(shapes: Shapes) -> int:
    """How many numbers parameters of these shapes have in all."""
    return sum(math.prod(shape) for shape in shapes.values())


def _views(shapes: Shapes, flat: Array) -> dict[str, Array]:
    views = {}
    start = 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        views[name] = flat[start:stop].reshape(shape)
        start = stop
    return views
