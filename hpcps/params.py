"""Named parameters and the one flat buffer that they share.

Collectives, shards and optimisers see the flat buffer; models see names and shapes. A gradient has the same layout.
Parameters that are *tables* (rows addressed by key) come last, so that the dense ones are one piece.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpcps import aligned

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]


class Params(Mapping[str, Array]):
    """Arrays by name, each a view of ``flat`` (one-dimensional, C-contiguous, in the order of the names given).

    >>> p = Params({"weight": (2, 3), "bias": (2,)}, np.zeros(8, np.float32))
    >>> p["bias"][:] = 1
    >>> p.flat.tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    """

    def __init__(self, shapes: Shapes, flat: Array, tables: Sequence[str] = ()) -> None:
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.flat = flat
        self.tables = tuple(tables)
        if tuple(shapes)[len(shapes) - len(tables) :] != self.tables:
            raise ValueError(f"the tables {', '.join(tables)} must be the last parameters")
        if flat.shape != (count(shapes),):
            raise ValueError(f"{count(shapes)} parameters do not fit a buffer of shape {flat.shape}")
        self._arrays = _views(self.shapes, flat)

    @classmethod
    def zeros(cls, shapes: Shapes, dtype: DTypeLike, tables: Sequence[str] = ()) -> Params:
        """Parameters of the given shapes, all zero."""
        return cls(shapes, aligned.zeros(count(shapes), dtype), tables)

    def ordered(self, tables: Sequence[str]) -> Params:
        """The same parameters with these tables, which are put last; a copy unless they are there already."""
        names = [*(name for name in self if name not in tables), *tables]
        shapes = {name: self.shapes[name] for name in names}
        if names == list(self):
            return Params(shapes, self.flat, tables)
        flat = aligned.empty(len(self.flat), self.flat.dtype)
        return Params(shapes, np.concatenate([self[name].reshape(-1) for name in names], out=flat), tables)

    def on(self, flat: Array) -> Params:
        """The same names and shapes over another buffer."""
        return Params(self.shapes, flat, self.tables)

    @property
    def dense(self) -> Params:
        """The parameters that are no tables, on the same memory."""
        shapes = {name: shape for name, shape in self.shapes.items() if name not in self.tables}
        return Params(shapes, self.flat[: count(shapes)])

    def table(self, name: str) -> Array:
        """A table as (rows, width), a view; a one-dimensional parameter is a table of width 1."""
        array = self._arrays[name]
        return array.reshape(len(array), -1) if array.size else array.reshape(len(array), 1)

    def offset(self, name: str) -> int:
        """Where a parameter begins in the flat buffer."""
        names = list(self.shapes)
        return count({before: self.shapes[before] for before in names[: names.index(name)]})

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
