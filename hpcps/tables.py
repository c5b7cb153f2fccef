"""Which rows of its tables a batch touches: keys are renumbered, rows picked out, gradients of rows made room for."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpcps import device
from hpcps.models import Array, Arrays, Batch, Model
from hpcps.params import Params, Shapes
from hpcps.rows import Rows, RowSource


class WholeRows:
    """Rows of tables that are here whole."""

    def __init__(self, params: Params, kernels: Any) -> None:
        self._tables = {name: params.table(name) for name in params.tables}
        self._gather = kernels.gather_rows
        self._here = device.of(kernels)

    def fetch(self, keys: Mapping[str, Array]) -> None:
        """They are here."""

    def rows(self, name: str, keys: Array) -> Array:
        table = self._tables[name]
        rows = self._here.scratch((len(keys), table.shape[1]), table.dtype)
        self._gather(rows, table, self._here.put(keys))
        return rows


class Tables:
    """The tables of a model, of ``shapes`` (R, ...). Safe to call from many threads.

    ``kernels``: the host's, for keys; ``here``: where rows and their gradients are.
    """

    def __init__(
        self,
        model: Model,
        shapes: Shapes,
        dtype: DTypeLike,
        source: RowSource,
        kernels: Any,
        here: device.Device = device.HOST,
    ) -> None:
        self.names = model.tables
        self.fields = model.fields
        self.shapes = {name: tuple(shapes[name]) for name in self.names}
        self.sizes = [shape[0] for shape in self.shapes.values()]
        """How many rows each table has."""
        self._dtype = np.dtype(dtype)
        self._source = source
        self._kernels = kernels
        self._room = here.scratch
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

    def fetch(self, batch: Batch) -> None:
        """Make ready the rows that a batch touches, which is not one of training."""
        if self.names:
            self._source.fetch(batch.keys)

    def pick(self, params: Params, batch: Batch) -> Arrays:
        """The parameters as the model sees them: of each table the rows of the batch alone."""
        if not self.names:
            return params
        rows = {name: self._source.rows(name, keys) for name, keys in batch.keys.items()}
        return {
            **params.dense,
            **{name: own.reshape(len(own), *self.shapes[name][1:]) for name, own in rows.items()},
        }

    def room_for_rows(self, batch: Batch) -> dict[str, Array]:
        """Memory for the gradients of a batch's rows, shaped as the model sees the rows."""
        return {name: self._room((len(keys), *self.shapes[name][1:]), self._dtype) for name, keys in batch.keys.items()}


def whole_tables(model: Model, params: Params, kernels: Any, here: device.Device | None = None) -> Tables:
    """The tables of parameters that are whole on a device, that of ``kernels`` if None."""
    here = device.of(kernels) if here is None else here
    return Tables(model, params.shapes, params.flat.dtype, WholeRows(params, here.kernels), kernels, here)


def as_rows(batch: Batch, gradient: Mapping[str, Array]) -> dict[str, Rows]:
    """The gradients of a batch's rows, with their keys."""
    rows = {}
    for name, keys in batch.keys.items():
        values = gradient[name]
        rows[name] = Rows(keys, values.reshape(len(keys), math.prod(values.shape[1:])))  # -1 fails where there are none
    return rows
