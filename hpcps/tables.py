"""Which rows of its tables a batch touches: keys are renumbered, rows picked out, gradients of rows made room for."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from hpcps.models import Array, Arrays, Batch, Model
from hpcps.params import Params
from hpcps.rows import Rows


class Tables:
    """The tables of a model with a back end's kernels. Safe to call from many threads."""

    def __init__(self, model: Model, params: Params, kernels: Any) -> None:
        self.names = model.tables
        self.fields = model.fields
        self.sizes = [len(params[name]) for name in self.names]
        """How many rows each table has."""
        self._kernels = kernels
        self._scratch = threading.local()

    def renumber(self, entries: Array) -> tuple[tuple[Array, ...], dict[str, Array]]:
        """Entries (nnz,) int32 as numbers of table rows, one array (int32) a field, and the keys of each table.

        Raises IndexError for an entry that is no row of its table.
        """
        columns: list[Array] = []
        keys: dict[str, Array] = {}
        for field in range(self.fields):
            own = entries if self.fields == 1 else np.ascontiguousarray(entries[field :: self.fields])
            distinct, numbers = np.empty(len(own), np.int64), np.empty(len(own), np.int32)
            names = self.names if self.fields == 1 else self.names[field : field + 1]
            size = self.sizes[field]
            count = self._kernels.localize(distinct, numbers, own, self._slots(field, size))
            columns.append(numbers)
            keys |= dict.fromkeys(names, distinct[:count])
        return tuple(columns), keys

    def _slots(self, field: int, size: int) -> Array:
        """Scratch of this thread: a number for each row, -1 outside of calls."""
        held: dict[int, Array] = self._scratch.__dict__.setdefault("slots", {})
        if field not in held:
            held[field] = np.full(size, -1, np.int32)
        return held[field]

    def pick(self, params: Params, batch: Batch) -> Arrays:
        """The parameters as the model sees them: of each table the rows of the batch alone, copied."""
        if not self.names:
            return params
        return {**params.dense, **{name: self._rows_of(params, name, keys) for name, keys in batch.keys.items()}}

    def _rows_of(self, params: Params, name: str, keys: Array) -> Array:
        table = params.table(name)
        rows = np.empty((len(keys), table.shape[1]), table.dtype)
        self._kernels.gather_rows(rows, table, keys)
        return rows.reshape(len(keys), *params.shapes[name][1:])


def room_for_rows(params: Params, batch: Batch) -> dict[str, Array]:
    """Memory for the gradients of a batch's rows, shaped as the model sees the rows."""
    return {
        name: np.empty((len(keys), *params.shapes[name][1:]), params.flat.dtype) for name, keys in batch.keys.items()
    }


def as_rows(batch: Batch, gradient: Mapping[str, Array]) -> dict[str, Rows]:
    """The gradients of a batch's rows, with their keys."""
    rows = {}
    for name, keys in batch.keys.items():
        values = gradient[name]
        rows[name] = Rows(keys, values.reshape(len(keys), math.prod(values.shape[1:])))  # -1 fails where there are none
    return rows
