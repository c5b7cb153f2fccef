"""Tables of a shard that the ranks of its node look at where they lie, instead of asking for rows.

A worker finds rows by itself: in the shard's index, in the shard's memory. It may while nothing is pushed: from the
answer that its own last step is in the parameters to its next push, where all workers' steps are added up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from hpcps_kernels.row_index import find
from numpy.typing import DTypeLike

from hpcps.comm.memory import TICKET_BYTES, Memory
from hpcps.comm.transport import Array
from hpcps.errors import CommError
from hpcps.server.messages import NO_LOOK, padded

NOT_SHOWN = 0
"""The layout of tables that nobody is shown"""
_ENTRY = np.dtype([("cells", np.uint8, TICKET_BYTES), ("rows", np.uint8, TICKET_BYTES), ("numbers", "<i8")])


class First(Protocol):
    """How the rows of a table begin: see :class:`hpcps.first.FirstRows`."""

    @property
    def width(self) -> int:
        """Numbers in a row."""

    def fill(self, rows: Array, keys: Array, kernels: Any) -> None:
        """Overwrite rows (k, width) with the first values of the rows of keys (k,) int64."""


class Shown(NamedTuple):
    """Where a table lies: tickets of :meth:`hpcps.comm.memory.Memory.borrow`."""

    cells: Array
    """Of the cells of its :class:`hpcps_kernels.row_index.RowIndex`"""
    rows: Array
    numbers: int
    """In a row with its state"""


def pack(tables: list[Shown]) -> Array:
    """What a letter tells of the tables of a shard, uint8."""
    return np.array([(one.cells, one.rows, one.numbers) for one in tables], _ENTRY).view(np.uint8)


class Reader:
    """Picks rows out of memory, or makes the first values of those that are not there, with these ``kernels``."""

    def __init__(self, first: First, kernels: Any, threads: int = 1) -> None:
        self._first, self._kernels, self._threads = first, kernels, threads

    def read(self, out: Array, keys: Array, slots: Array, packed: Array) -> bool:
        """Overwrite ``out`` (k, W) with the rows of keys (k,) int64, at least one, which are in front of ``packed``
        (R, n W) at ``slots`` (k,), -1 for one that is not there. Returns whether all are."""
        is_whole = bool(slots.min() >= 0)
        if is_whole:
            self._kernels.gather_leading(out, packed, slots, threads=self._threads)
            return True
        missing = np.flatnonzero(slots < 0)
        if len(missing) == len(keys):
            self._first.fill(out, keys, self._kernels)
            return False
        self._kernels.gather_leading(out, packed, np.maximum(slots, 0), threads=self._threads)
        made = np.empty((len(missing), out.shape[1]), out.dtype)
        self._first.fill(made, keys[missing], self._kernels)
        self._kernels.scatter_rows(out, made, missing)
        return False


class Viewer(NamedTuple):
    """What a worker needs to look at tables of shards on its node: of all that there are, in their order, how rows
    begin, the ``dtype`` of rows, ``kernels`` for the host, and the node's ``memory``."""

    firsts: Mapping[str, First]
    dtype: DTypeLike
    kernels: Any
    memory: Memory

    @property
    def told_bytes(self) -> int:
        """What a shard needs to tell of its tables."""
        return len(self.firsts) * _ENTRY.itemsize

    def view(self, layout: int, told: Array) -> View:
        """The tables of a shard in such a layout; ``told`` came with it. Raises CommError where they are not seen."""
        size_bytes = self.told_bytes
        if len(told) < size_bytes:
            raise CommError(f"{len(told)} bytes came that are to tell of {len(self.firsts)} tables")
        tables = {}
        for (name, first), entry in zip(self.firsts.items(), told[:size_bytes].view(_ENTRY), strict=True):
            cells = self.memory.borrow(entry["cells"]).view(np.int64).reshape(-1, 2)
            rows, numbers = self.memory.borrow(entry["rows"]).view(self.dtype), int(entry["numbers"])
            if not first.width <= numbers <= len(rows):
                raise CommError(f"rows of {numbers} numbers cannot be those of {name}, {first.width} wide")
            packed = rows[: len(rows) // numbers * numbers].reshape(-1, numbers)
            tables[name] = Reader(first, self.kernels), cells, packed
        return View(layout, self.kernels, tables)


class View:
    """The tables of a shard as they are in one layout."""

    def __init__(self, layout: int, kernels: Any, tables: Mapping[str, tuple[Reader, Array, Array]]) -> None:
        self.layout = layout
        self._kernels, self._tables = kernels, tables

    def read(self, name: str, keys: Array, out: Array) -> Array:
        """Overwrite ``out`` (k, W) with the rows of keys (k,) int64 of a table. Returns their slots (k,) int64, -1 for
        one that is not there."""
        reader, cells, packed = self._tables[name]
        slots = find(self._kernels, cells, keys)
        if len(keys):
            reader.read(out, keys, slots, packed)
        return slots


class Looks:
    """What a worker knows of the tables of so many shards: those that are shown it looks at by ``viewer``."""

    def __init__(self, viewer: Viewer | None, shards: int) -> None:
        self._viewer = viewer
        self._views: list[View | None] = [None] * shards
        self._steps: list[int | None] = [None] * shards
        self._slots: list[list[Array] | None] = [None] * shards
        self._blind: set[int] = set()

    def can(self, number: int) -> bool:
        """Whether rows of a shard can be looked at, as far as is known."""
        return self._views[number] is not None

    def known(self, number: int, slack: int) -> int:
        """What a pull tells the shard that the worker knows."""
        if self._viewer is None or slack != 0 or number in self._blind:
            return NO_LOOK
        view = self._views[number]
        return NOT_SHOWN if view is None else view.layout

    def is_fresh(self, number: int, step: int) -> bool:
        """Whether a shard has answered that it has all workers' steps up to ``step``, and nothing was pushed since."""
        return self._steps[number] == step

    def pushed(self) -> None:
        """Something is pushed to all shards."""
        self._steps = [None] * len(self._steps)

    def forget(self, number: int) -> None:
        """A shard is lost."""
        self._views[number] = self._steps[number] = self._slots[number] = None

    def answered(self, number: int, step: int, layout: int, more: Array) -> bool:
        """A shard has answered that it has all workers' steps up to ``step``, and its tables this layout, of which
        ``more`` tells at its end if it is another one. Returns whether it is."""
        self._steps[number] = step
        if self._viewer is None or self.known(number, 0) in (NO_LOOK, layout):
            return False
        self._views[number] = self._slots[number] = None
        if layout != NOT_SHOWN:
            try:
                self._views[number] = self._viewer.view(layout, more[-padded(self._viewer.told_bytes) :])
            except CommError:  # its memory cannot be had here: then rows come in letters
                self._blind.add(number)
        return True

    def asked(self, number: int) -> None:
        """A shard is asked for rows, and will know their keys."""
        self._slots[number] = None

    def read(self, number: int, keys: Sequence[tuple[str, Array]], outs: Sequence[Array]) -> None:
        """Overwrite ``outs``, (k, W) for each table, with the rows of these keys (k,) int64 on a shard."""
        view = self._views[number]
        assert view is not None
        self._slots[number] = [view.read(name, own, out) for (name, own), out in zip(keys, outs, strict=True)]

    def slots(self, number: int) -> list[Array] | None:
        """Where the rows of the last keys are in the layout that is known of a shard's tables, if they were looked
        at."""
        return self._slots[number]
