"""The state of a run between two steps, whoever holds it: it depends on no rank count, shard count or strategy.

Dense parameters and everything that goes with them are *flat* arrays in parameter order, each made up of pieces that
several ranks may hold:

==================== ==================================================================================================
``parameters``       (n,) the dense parameters
``state.S``          (n,) array S of the optimiser's state
``own_state.S``      (P * n,) the same where each of P workers has its own (averaging), worker after worker
``own_table.T.S``    (P * R * W,) likewise of table T, which has R rows of W numbers
``residual``         (P * n,) what compressed gradients have left out, worker after worker
``residual.sum``     (n,) what compressed sums have left out
``sketch.T``         (S * c,) how often keys of table T came that have no row yet, counted by each of S shards
==================== ==================================================================================================

Tables are rows by key, in pieces: ``rows`` (k, W), ``state.S`` (k, W) and, where rows are evicted, ``uses`` (k, 2).
Whoever restores takes the ranges and the keys that it is to own, from a `Snapshot`: of files, or of memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from hpcps.errors import CheckpointError

Array = np.ndarray[Any, Any]

BLOCK_BYTES = 4 << 20
"""What is read, changed or written at a time."""


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    steps: int
    updates: int
    """How often the optimiser has changed the parameters: more often than there were steps where workers' gradients
    are applied one by one"""
    workers: int
    losses: tuple[float, ...]
    """Of each part of the batch, summed since the last report"""
    reported_steps: int
    """Steps at the last report"""
    clock: Mapping[str, float]
    """What the stopwatch shows"""
    measures: Mapping[str, Any]
    """What the last report said"""
    resumed: tuple[int, ...] = ()
    """The steps from which the run was resumed"""
    cut: tuple[int, ...] = ()
    """Bounds of the parts into which the batches of the epoch under way are cut"""
    left_out: int = 0
    """Samples of the steps since the last report of which there is no loss: their workers were late"""


class Values(NamedTuple):
    """An array wherever it is: ``read(low, high)`` gives its rows low .. high - 1, which may be a view."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    read: Callable[[int, int], Array]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def blocks(self) -> Iterator[Array]:
        """The array, some rows at a time."""
        for low, high in _blocks(self.shape[0], math.prod(self.shape[1:]) * self.dtype.itemsize):
            yield self.read(low, high)


def in_memory(array: Array, read: Callable[[Array], Array] = lambda array: array) -> Values:
    """An array in memory, as it is when it is read; ``read``: brings it to the host, if it is elsewhere."""
    return Values(array.dtype, array.shape, lambda low, high: read(array[low:high]))


def copy(values: Values) -> Values:
    """The same as it is now."""
    return in_memory(values.read(0, values.shape[0]).copy())


class Flat(NamedTuple):
    """A piece of the flat array ``name``, which begins at element ``start`` of it."""

    name: str
    start: int
    values: Values

    @property
    def stop(self) -> int:
        return self.start + self.values.shape[0]


class TableRows(NamedTuple):
    """A piece of a table: the rows from ``start`` on, or, where there is a column ``keys``, the rows of these keys, all
    of which are ``among[1]`` modulo ``among[0]``."""

    table: str
    columns: Mapping[str, Values]
    start: int = 0
    among: tuple[int, int] = (1, 0)

    @property
    def is_whole(self) -> bool:
        """Whether the piece has rows that nobody has touched, too."""
        return "keys" not in self.columns

    @property
    def size(self) -> int:
        """How many rows there are."""
        return self.columns["rows"].shape[0]


@dataclass(frozen=True)
class Pieces:
    """What one holder has of a run's state."""

    flats: Sequence[Flat] = ()
    tables: Sequence[TableRows] = ()

    @property
    def nbytes(self) -> int:
        columns = (values for rows in self.tables for values in rows.columns.values())
        return sum(flat.values.nbytes for flat in self.flats) + sum(values.nbytes for values in columns)

    def __add__(self, other: Pieces) -> Pieces:
        return Pieces([*self.flats, *other.flats], [*self.tables, *other.tables])

    def copy(self) -> Pieces:
        """The same as they are now."""
        flats = [flat._replace(values=copy(flat.values)) for flat in self.flats]
        tables = [
            rows._replace(columns={name: copy(values) for name, values in rows.columns.items()}) for rows in self.tables
        ]
        return Pieces(flats, tables)


class Block(NamedTuple):
    """Some rows of a table: keys (k,), and by name (k, W) of its columns."""

    keys: Array
    columns: Mapping[str, Array]
    is_whole: bool


@dataclass(frozen=True)
class Snapshot:
    """A run's state, from all who have a piece of it. What does not fit together is a CheckpointError when it is asked
    for; ``source`` says in its message where this comes from."""

    position: Position
    pieces: Pieces
    source: str = "the snapshot"
    _by_name: dict[str, list[Flat]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for flat in sorted(self.pieces.flats, key=lambda flat: flat.start):
            own = self._by_name.setdefault(flat.name, [])
            if own and own[-1].stop > flat.start:
                raise CheckpointError(f"{self.source}: {flat.name} is there twice from {flat.start} on")
            own.append(flat)

    def has(self, name: str) -> bool:
        """Whether there is a flat array of this name."""
        return name in self._by_name

    def count(self, name: str) -> int:
        """How many elements a flat array has."""
        return self._by_name[name][-1].stop if name in self._by_name else 0

    def names(self, prefix: str) -> set[str]:
        """What follows the prefix in the names of flat arrays."""
        return {name.removeprefix(prefix) for name in self._by_name if name.startswith(prefix)}

    def fill(self, out: Array, name: str, start: int = 0) -> None:
        """Overwrite ``out``, (k,), with the elements of a flat array from ``start`` on."""
        filled = 0
        for flat in self._by_name.get(name, ()):
            low, high = max(start, flat.start), min(start + len(out), flat.stop)
            if low < high:
                self._copy(out[low - start : high - start], flat.values, low - flat.start)
                filled += high - low
        if filled != len(out):
            raise CheckpointError(f"{self.source}: {name} has not the elements {start} to {start + len(out) - 1}")

    def add_into(self, out: Array, name: str, start: int) -> None:
        """Add the elements of a flat array from ``start`` on to ``out``, (k,)."""
        for low, high in _blocks(len(out), out.itemsize):
            addend = np.empty(high - low, out.dtype)
            self.fill(addend, name, start + low)
            out[low:high] += addend

    def fill_state(self, out: Array, name: str, start: int) -> None:
        """Overwrite ``out`` with elements of the optimiser's state: the mean where each worker has its own."""
        if self.has(f"state.{name}"):
            self.fill(out, f"state.{name}", start)
        else:
            self._fill_mean(out, f"own_state.{name}", start)

    def fill_own_state(self, out: Array, name: str, worker: int, workers: int) -> None:
        """The same, (n,), for a worker that has its own: the one that it had, if there are as many workers as then."""
        if self.has(f"own_state.{name}") and self.position.workers == workers:
            self.fill(out, f"own_state.{name}", worker * len(out))
        else:
            self.fill_state(out, name, 0)

    def fill_residual(self, out: Array, start: int, count: int, worker: int, workers: int, has_sums: bool) -> None:
        """Overwrite ``out`` with what this worker's gradient has left out, from ``start`` of ``count`` parameters on.
        Where there were other workers, or sums are not coded any more, the first one gets it all: what all have left
        out together stays the same."""
        out.fill(0)
        if self.has("residual") and self.position.workers == workers:
            self.fill(out, "residual", worker * count + start)
        elif self.has("residual") and worker == 0:
            for other in range(self.position.workers):
                self.add_into(out, "residual", other * count + start)
        if self.has("residual.sum") and worker == 0 and not has_sums:
            self.add_into(out, "residual.sum", start)

    def rows_of(self, table: str, whole: Array, states: Sequence[str] = ()) -> Iterator[Block]:
        """The rows of a table that is to be there whole, ``whole`` (R, W), with these arrays of state, in blocks."""
        for block in self.rows(table, whole.shape[1], whole.dtype, states):
            if len(block.keys) and not 0 <= block.keys.min() <= block.keys.max() < len(whole):
                raise CheckpointError(f"{self.source}: {table} has rows beyond the {len(whole)} that there are")
            yield block

    def rows(
        self, table: str, width: int, dtype: np.dtype[Any], states: Sequence[str], shards: int = 1, shard: int = 0
    ) -> Iterator[Block]:
        """The rows of a table whose keys are ``shard`` modulo ``shards``, with these arrays of state, in blocks."""
        for piece in self.pieces.tables:
            step, first = piece.among
            if piece.table != table or (shard - first) % math.gcd(step, shards):
                continue
            self._check(piece, width, dtype)
            for low, high in _blocks(piece.size, width * piece.columns["rows"].dtype.itemsize):
                yield self._block(piece, low, high, states, shards, shard)

    def _block(self, piece: TableRows, low: int, high: int, states: Sequence[str], shards: int, shard: int) -> Block:
        if piece.is_whole:
            keys = np.arange(piece.start + low, piece.start + high)
        else:
            keys = piece.columns["keys"].read(low, high).astype(np.int64).reshape(-1)
        columns = {"rows": piece.columns["rows"].read(low, high)}
        for name in states:
            columns[f"state.{name}"] = self._state_of_rows(piece, name, low, high)
        if "uses" in piece.columns:
            columns["uses"] = piece.columns["uses"].read(low, high)
        if shards > 1:
            own = np.flatnonzero(keys % shards == shard)
            keys, columns = keys[own], {name: column[own] for name, column in columns.items()}
        return Block(keys, columns, piece.is_whole)

    def _state_of_rows(self, piece: TableRows, name: str, low: int, high: int) -> Array:
        column = piece.columns.get(f"state.{name}")
        if column is not None:
            return column.read(low, high)
        rows = piece.columns["rows"]
        width = math.prod(rows.shape[1:])
        mean = np.empty((high - low, width), rows.dtype)
        self._fill_mean(mean.reshape(-1), f"own_table.{piece.table}.{name}", (piece.start + low) * width)
        return mean

    def _fill_mean(self, out: Array, name: str, start: int) -> None:
        """Overwrite ``out`` with the mean of what the workers have, each an equal part of the array."""
        workers = self.position.workers
        each = self.count(name) // workers
        if start + len(out) > each:
            raise CheckpointError(f"{self.source}: the optimiser's state {name.split('.')[-1]!r} is not there")
        for low, high in _blocks(len(out), 8):
            total = np.zeros(high - low)
            own = np.empty(high - low, out.dtype)
            for worker in range(workers):
                self.fill(own, name, worker * each + start + low)
                total += own
            out[low:high] = total / workers

    def _check(self, piece: TableRows, width: int, dtype: np.dtype[Any]) -> None:
        """Raise CheckpointError unless the columns of a piece are as they should be."""
        count, whole = piece.size, np.dtype(np.int64)
        wanted: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = dict.fromkeys(piece.columns, ((count, width), dtype))
        wanted |= {"keys": ((count,), whole), "uses": ((count, 2), whole)}
        for name, values in piece.columns.items():
            if (values.shape, values.dtype) != wanted[name]:
                found = f"{values.dtype} of shape {values.shape}"
                raise CheckpointError(f"{self.source}: {piece.table} has {name} as {found}, not {wanted[name]}")

    def _copy(self, out: Array, values: Values, start: int) -> None:
        if values.dtype != out.dtype or len(values.shape) != 1:
            raise CheckpointError(f"{self.source}: holds {values.dtype} of shape {values.shape}, not flat {out.dtype}")
        for low, high in _blocks(len(out), out.itemsize):
            out[low:high] = values.read(start + low, start + high)


def _blocks(count: int, element_bytes: int) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_BYTES // max(1, element_bytes))
    return ((low, min(low + step, count)) for low in range(0, count, step))
