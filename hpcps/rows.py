"""Rows of tables: the part of a gradient that touches few rows, as keys and values.

A table is a parameter of R rows, of which a batch touches those whose keys occur in it. Its gradient is kept as
*rows*: distinct keys, and one row of values a key. Rows of several parts or ranks are merged by adding up the values
of equal keys, in the order given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike

Array = np.ndarray[Any, Any]


class Rows(NamedTuple):
    """Some rows of one table: ``keys`` (k,) int64, distinct, always on the host; ``values`` (k, W) in the training
    dtype, or int64."""

    keys: Array
    values: Array


class Picked(NamedTuple):
    """Some of many rows: those of ``keys`` (k,) int64 where ``are_in`` (k,) bool says so."""

    keys: Array
    are_in: Array


class Found:
    """Where a table has found the rows of ``keys``: for who comes with these keys again, in this array."""

    __slots__ = ("is_whole", "keys", "layout", "slots")

    def __init__(self, keys: Array, slots: Array | None = None, is_whole: bool = False, layout: int = 0) -> None:
        self.keys = keys
        self.slots = slots
        """(k,) int64, -1 where there was no row; None: nobody has looked"""
        self.is_whole = is_whole
        """Whether there was a row of each key"""
        self.layout = layout
        """Of the table, when it was looked at"""


ByTable = Mapping[str, Rows]


class RowSource(Protocol):
    """Where a worker's rows of tables are."""

    def fetch(self, keys: Mapping[str, Array]) -> None:
        """Make rows of these keys (distinct, of each table) ready for :meth:`rows`. Blocks."""

    def rows(self, name: str, keys: Array) -> Array:
        """The rows (k, W) of the keys (k,) of a table, in their order; not to be changed, valid until they change."""


class PulledRows:
    """Rows that were pulled from shards: those of the keys that were asked for last, and no others.

    ``widths``: of each table; ``pull``: brings rows here by :meth:`put`.
    """

    def __init__(self, widths: Mapping[str, int], dtype: DTypeLike, kernels: Any) -> None:
        self.widths = widths
        self.dtype = np.dtype(dtype)
        self.pull: Callable[[Mapping[str, Array]], None] | None = None
        self._gather = kernels.gather_rows
        self._held = {name: Rows(np.empty(0, np.int64), self.room(name, 0)) for name in widths}

    def room(self, name: str, count: int) -> Array:
        """Memory for so many rows of a table."""
        return np.empty((count, self.widths[name]), self.dtype)

    def put(self, name: str, keys: Array, values: Array) -> None:
        """From now on these rows are held, and no others of the table."""
        self._held[name] = Rows(keys, values)

    def fetch(self, keys: Mapping[str, Array]) -> None:
        assert self.pull is not None
        self.pull(keys)

    def rows(self, name: str, keys: Array) -> Array:
        held = self._held[name]
        if keys is held.keys or np.array_equal(keys, held.keys):
            return held.values
        order = np.argsort(held.keys, kind="stable")
        places = order[np.searchsorted(held.keys, keys, sorter=order)]
        found = self.room(name, len(keys))
        self._gather(found, held.values, places)
        return found


class Merger:
    """Merges rows with a back end's kernels."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels

    def merge(self, parts: Sequence[ByTable]) -> dict[str, Rows]:
        """The sum of several parts' rows, table by table; the values added in the order of the parts."""
        if len(parts) == 1:
            return dict(parts[0])
        return {name: self._add([part[name] for part in parts]) for name in (parts[0] if parts else ())}

    def merge_fixed(self, parts: Sequence[ByTable], scale: float) -> dict[str, Rows]:
        """The exact sum as int64 fixed point: each value times ``scale``, rounded."""
        return {name: self._add_fixed([part[name] for part in parts], scale) for name in parts[0]}

    def largest(self, values: Array) -> float:
        """The largest magnitude of rows' values, which need not be finite."""
        found: float = self._kernels.max_abs(values.reshape(-1))
        return found

    def union(self, parts: Sequence[Array]) -> Array:
        """The distinct keys of several arrays of keys (each distinct in itself)."""
        return parts[0] if len(parts) == 1 else self._distinct(parts)[0]

    def _add(self, parts: list[Rows]) -> Rows:
        keys, places = self._distinct([part.keys for part in parts])
        total = np.zeros((len(keys), parts[0].values.shape[1]), parts[0].values.dtype)
        self._kernels.scatter_add_rows(total, np.concatenate([part.values for part in parts]), places)
        return Rows(keys, total)

    def _add_fixed(self, parts: list[Rows], scale: float) -> Rows:
        keys, places = self._distinct([part.keys for part in parts])
        total = np.zeros((len(keys), parts[0].values.shape[1]), np.int64)
        values = np.concatenate([part.values for part in parts])
        self._kernels.scatter_add_rows_fixed(total, values, places, scale)
        return Rows(keys, total)

    def _distinct(self, parts: Sequence[Array]) -> tuple[Array, Array]:
        """The distinct keys, ascending, and where each given key stands among them, int64."""
        given = np.concatenate(parts)
        keys, places = np.empty_like(given), np.empty(len(given), np.int32)
        count = self._kernels.unique(keys, places, given)
        return keys[:count], places.astype(np.int64)
