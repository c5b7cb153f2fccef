"""First values of parameters: those of a table's row are a function of its key.

So a table may be made whole, or row by row where its keys come up: the values are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from hpcps import device
from hpcps.params import Params

Array = np.ndarray[Any, Any]

BLOCK = 1 << 16
"""Rows that are filled at a time."""


class FirstRows(NamedTuple):
    """How the rows of one table begin: normal numbers by (seed, key, column), as kernel ``init_rows`` draws them.

    ``shape`` is that of the whole table, (R, ...); ``deviation`` 0 makes zeros; so are the first ``zeros`` columns.
    """

    shape: tuple[int, ...]
    seed: int
    deviation: float = 0.0
    zeros: int = 0

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return math.prod(self.shape[1:])

    def fill(self, rows: Array, keys: Array, kernels: Any) -> None:
        """Overwrite rows (k, width) with the first values of the rows of keys (k,) int64."""
        kernels.init_rows(rows, keys, self.seed, self.zeros, self.deviation)


class First(NamedTuple):
    """The dense parameters, and how the rows of each table begin, in the order of the tables."""

    dense: Params
    tables: Mapping[str, FirstRows]


class Begins(Protocol):
    """A model with tables."""

    def first(self, rng: np.random.Generator) -> First:
        """How its parameters begin, the same for the same state of ``rng``."""


def draw_seed(rng: np.random.Generator) -> int:
    """The seed of a table, any that is 0 or positive in int64."""
    return int(rng.integers(1 << 63, dtype=np.uint64))


def whole(first: First, kernels: Any) -> Params:
    """All parameters with tables of keys 0 .. R - 1, which come last."""
    shapes = {**first.dense.shapes, **{name: rows.shape for name, rows in first.tables.items()}}
    params = Params.zeros(shapes, first.dense.flat.dtype, tuple(first.tables))
    params.dense.flat[:] = first.dense.flat
    for name, rows in first.tables.items():
        if rows.deviation:
            _fill(params.table(name), rows, kernels)
    return params


def _fill(table: Array, rows: FirstRows, kernels: Any) -> None:
    here = device.of(kernels)
    for start in range(0, len(table), BLOCK):
        block = table[start : start + BLOCK]
        with device.filled(here, block) as there:
            rows.fill(there, here.put(np.arange(start, start + len(block))), kernels)
