"""The tables of a shard: rows by int64 key, with their optimiser state. All work on rows and keys is the kernels'.

A :class:`Table` has memory for the keys that were pushed alone; a :class:`WholeTable` is given whole. Both do to a row
what one large array updated by the same calls would see done to it, to the last bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from hpcps_kernels.row_index import RowIndex, in_lines
from numpy.typing import DTypeLike

from hpcps.comm.memory import Memory
from hpcps.comm.transport import Array
from hpcps.errors import CheckpointError, CommError
from hpcps.first import FirstRows
from hpcps.optim import Optimizer
from hpcps.rows import Found
from hpcps.server.growing import GrowingRows, take
from hpcps.server.shown import Reader, Shown
from hpcps.snapshot import Block, Flat, Pieces, Snapshot, TableRows, in_memory

BLOCK = 1 << 16
"""Rows that are handed out or moved at a time."""
SKETCH_ROWS = 4
MOST_PUSHES_COUNTED = 65535
PUSHES, LAST_STEP = 0, 1
KEY_BYTES = 8


class Table:
    """Rows that are made by the first push of their key; until then a pull gives their first values, and keeps nothing.

    ``first``: how rows begin. ``admit_after``: so many pushes of a key are dropped before its row is made; they are
    counted in ``sketch_cells`` (a power of two) times 8 bytes whatever the number of keys, at times too high, which
    makes a row early, and from 0 again after an eviction. ``tracks_use``: keep what `evict` asks for, 16 bytes a row.
    ``capacity``: how many rows there is an index for at first; it grows. ``threads`` share large pulls. ``memory``:
    of the ranks that are to see index and rows, see :meth:`shown`.

    A row and its state lie side by side: one place in memory, which is what a row picked at random costs. Not safe to
    call from several threads.
    """

    def __init__(
        self,
        first: FirstRows,
        dtype: DTypeLike,
        optimizer: Optimizer,
        kernels: Any,
        *,
        admit_after: int = 0,
        tracks_use: bool = False,
        capacity: int = 1024,
        sketch_cells: int = 1 << 20,
        threads: int = 1,
        memory: Memory | None = None,
    ) -> None:
        if not 0 <= admit_after < MOST_PUSHES_COUNTED:
            raise ValueError(f"a row is admitted after 0 to {MOST_PUSHES_COUNTED - 1} pushes, not {admit_after}")
        self.width, self.dtype = first.width, np.dtype(dtype)
        self.dropped = 0
        """Rows of pushes that were dropped, over all pushes."""
        self._first, self._optimizer, self._kernels = first, optimizer, kernels
        self._reader, self._memory = Reader(first, kernels, threads), memory
        self.states = tuple(optimizer.init(np.empty((0, self.width), dtype)))
        """The names of the arrays of state, in the order in which they lie behind a row"""
        self._packed = GrowingRows(self.width * (1 + len(self.states)), dtype, memory)
        self._keys = GrowingRows(1, np.int64)
        self._uses = GrowingRows(2, np.int64) if tracks_use else None
        self.layout = 0
        """Changes when rows get other slots, or their index another place"""
        self._cells: Array | None = None
        """The ticket of the index's memory"""
        self._index = RowIndex(kernels, capacity, self._cells_of)
        self._admit_after = admit_after
        self._sketch = np.zeros((SKETCH_ROWS, sketch_cells), np.uint16) if admit_after else None

    def __len__(self) -> int:
        return len(self._index)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that there are, their state, their index, and of the counts of others."""
        row_bytes = sum(column.row_bytes for column in self._columns())
        return len(self) * row_bytes + self._index.nbytes + (0 if self._sketch is None else self._sketch.nbytes)

    def pull(self, keys: Array, out: Array | None = None, found: Found | None = None) -> Array:
        """The rows (k, W) of keys (k,) int64, any values: a copy, or written to ``out``. Where they are is noted in
        ``found``, of these keys, for a push of them."""
        rows = np.empty((len(keys), self.width), self.dtype) if out is None else out
        if len(keys):
            slots = self._index.find(keys)
            is_whole = self._reader.read(rows, keys, slots, self._packed.array)
            if found is not None:
                found.slots, found.is_whole, found.layout = slots, is_whole, self.layout
        return rows

    def shown(self) -> Shown | None:
        """Where ranks of the node find index and rows; None where they do not see them. It is so until the layout
        changes. They may look at rows while nothing is pushed."""
        if self._cells is None or self._packed.ticket is None:
            return None
        return Shown(self._cells, self._packed.ticket, self.width * (1 + len(self.states)))

    def push(self, keys: Array, gradient: Array, gradient_scale: float, step: int, found: Found | None = None) -> None:
        """Update the rows of keys (k,) int64, all distinct, by a gradient (k, W); see `optim.Optimizer`. ``found``: of
        the last pull of these keys, if there was one.

        Raises MemoryError where there are no addresses for new rows; nothing has changed then. Where there is no memory
        for them, it raises MemoryError, too, and the table is of no use any more.
        """
        self._reserve(len(self) + len(keys))
        if self._sketch is None:
            slots = self._found(keys, found)
        else:
            slots, gradient = self._admit(keys, gradient, self._sketch)
        self._optimizer.update_packed(self._packed.array, gradient, slots, gradient_scale, step)
        if self._uses is not None:
            self._note(self._uses.array, slots, step)

    def evict(self, min_pushes: int = 0, since_step: int = 0) -> int:
        """Take away the rows that were pushed fewer than ``min_pushes`` times since they were made, or not at
        ``since_step`` or later; returns how many. Their memory goes back to the system. A pass over all rows.

        Raises ValueError for a table without ``tracks_use``.
        """
        if self._uses is None:
            raise ValueError("a table whose rows are to be evicted must be made with tracks_use")
        before, count = len(self), 0
        for start in range(0, before, BLOCK):
            uses = self._uses.array[start : min(start + BLOCK, before)]
            is_kept = (uses[:, PUSHES] >= min_pushes) & (uses[:, LAST_STEP] >= since_step)
            kept = np.flatnonzero(is_kept) + start
            self._move(kept, count)
            count += len(kept)
        for column in self._columns():
            column.give_back(count)
        self.layout += 1
        del self._index  # before another one takes memory
        self._index = RowIndex(self._kernels, max(count, 1), self._cells_of)
        for start in range(0, count, BLOCK):
            self._index.insert(self._keys.array[start : min(start + BLOCK, count), 0])
        if self._sketch is not None:
            self._sketch.fill(0)
        return before - count

    def blocks(self) -> Iterator[tuple[Array, Array]]:
        """All rows, in pieces: keys (k,) int64 and rows (k, W), copies. The table may not change meanwhile."""
        for start in range(0, len(self), BLOCK):
            part = slice(start, min(start + BLOCK, len(self)))
            yield self._keys.array[part, 0].copy(), self._packed.array[part, : self.width].copy()

    def pieces(self, name: str, shards: int, shard: int) -> Pieces:
        """What there is, as table ``name`` on one of ``shards``: until the next push or eviction."""
        count, columns = len(self), {"keys": in_memory(self._keys.array[: len(self), 0])}
        for place, column in enumerate(("rows", *(f"state.{state}" for state in self.states))):
            columns[column] = in_memory(self._packed.array[:count, place * self.width : (place + 1) * self.width])
        if self._uses is not None:
            columns["uses"] = in_memory(self._uses.array[:count])
        flats = []
        if self._sketch is not None:
            flats = [Flat(f"sketch.{name}", shard * self._sketch.size, in_memory(self._sketch.reshape(-1)))]
        return Pieces(flats, [TableRows(name, columns, among=(shards, shard))])

    def restore(self, snapshot: Snapshot, name: str, shards: int, shard: int) -> None:
        """Take over what a snapshot has of table ``name`` for one of ``shards``. The table must be empty."""
        for block in snapshot.rows(name, self.width, self.dtype, self.states, shards, shard):
            keys, packed, uses = self._touched(block, snapshot.position.updates)
            before = len(self)
            self._reserve(before + len(keys))
            slots = self._index.insert(keys)
            if len(self) != before + len(keys):
                raise CheckpointError(f"{snapshot.source}: {name} has a key twice")
            for column in self._columns():
                column.take(len(self))
            self._packed.array[slots] = packed
            self._keys.array[slots, 0] = keys
            if self._uses is not None:
                self._uses.array[slots] = uses
        if self._sketch is not None and snapshot.has(f"sketch.{name}"):
            self._restore_sketch(self._sketch.reshape(-1), snapshot, f"sketch.{name}", shards, shard)

    def _touched(self, block: Block, updates: int) -> tuple[Array, Array, Array]:
        """Keys, rows with their state, and uses: of a table that was whole the rows alone that are not as they begin.
        What is not known to have been used counts as used in the last update."""
        keys, columns = block.keys, block.columns
        packed = np.concatenate([columns["rows"], *(columns[f"state.{name}"] for name in self.states)], axis=1)
        uses = columns.get("uses", np.full((len(keys), 2), (1, updates), np.int64))
        if not block.is_whole:
            return keys, packed, uses
        first = np.empty((len(keys), self.width), self.dtype)
        self._first.fill(first, keys, self._kernels)
        begin = np.concatenate([first, *self._optimizer.init(first).values()], axis=1)
        changed = np.flatnonzero((packed.view(np.uint8) != begin.view(np.uint8)).any(axis=1))
        return keys[changed], packed[changed], uses[changed]

    def _restore_sketch(self, sketch: Array, snapshot: Snapshot, name: str, shards: int, shard: int) -> None:
        """The shard's own counts, or, where there were other shards, those of all of them added up: at times too high,
        as they may be."""
        were = max(1, snapshot.count(name) // len(sketch))
        if were == shards:
            snapshot.fill(sketch, name, shard * len(sketch))
            return
        own = np.empty_like(sketch)
        for other in range(were):
            snapshot.fill(own, name, other * len(sketch))
            np.minimum(sketch, MOST_PUSHES_COUNTED - own, out=sketch)
            sketch += own

    def _cells_of(self, numbers: int) -> Array:
        """Memory for the cells of an index, which ranks of the node see if they see the rows."""
        cells, ticket, size_bytes = None, None, numbers * KEY_BYTES
        if self._memory is not None and self._packed.ticket is not None:
            with contextlib.suppress(CommError):  # then nobody sees it
                memory, ticket = self._memory.reserve(size_bytes)
                take(memory, 0, size_bytes, self._memory)
                cells = memory.view(np.int64)
        if cells is None:
            cells = in_lines(numbers)
        self._cells = ticket
        self.layout += 1
        return cells

    def _columns(self) -> list[GrowingRows]:
        return [self._packed, self._keys, *([] if self._uses is None else [self._uses])]

    def _reserve(self, rows: int) -> None:
        for column in self._columns():
            column.reserve(rows)

    def _found(self, keys: Array, found: Found | None) -> Array:
        """The slots of keys, of which some may have been found before; rows are made for new ones."""
        known = None if found is None or found.keys is not keys or found.layout != self.layout else found.slots
        if found is None or known is None:
            return self._insert(keys)
        if not found.is_whole:
            new = np.flatnonzero(known < 0)
            known[new] = self._insert(keys[new])
            found.is_whole = True
        return known

    def _insert(self, keys: Array) -> Array:
        """The slots of keys; rows are made for new ones, whose slots follow each other."""
        before = len(self)
        slots = self._index.insert(keys)
        if len(self) > before:
            self._make(keys[slots >= before], slice(before, len(self)))
        return slots

    def _make(self, keys: Array, where: slice) -> None:
        for column in self._columns():
            column.take(where.stop)
        packed = self._packed.array[where]
        rows = np.empty((len(keys), self.width), self.dtype) if self.states else packed
        self._first.fill(rows, keys, self._kernels)
        if self.states:
            np.concatenate([rows, *self._optimizer.init(rows).values()], axis=1, out=packed)
        self._keys.array[where, 0] = keys
        if self._uses is not None:
            self._uses.array[where] = 0

    def _admit(self, keys: Array, gradient: Array, sketch: Array) -> tuple[Array, Array]:
        """The slots of the keys that have been pushed often enough, and their gradient."""
        slots = self._index.find(keys)
        unknown = np.flatnonzero(slots < 0)
        if not len(unknown):
            return slots, gradient
        counts = np.empty(len(unknown), np.int64)
        self._kernels.sketch_count(counts, sketch, keys[unknown])
        admitted = unknown[counts > self._admit_after]
        slots[admitted] = self._insert(keys[admitted])
        self.dropped += len(unknown) - len(admitted)
        kept = np.flatnonzero(slots >= 0)
        rows = np.empty((len(kept), self.width), self.dtype)
        self._kernels.gather_rows(rows, gradient, kept)
        return slots[kept], rows

    def _note(self, all_uses: Array, slots: Array, step: int) -> None:
        uses = np.empty((len(slots), 2), np.int64)
        self._kernels.gather_rows(uses, all_uses, slots)
        uses[:, PUSHES] += 1
        uses[:, LAST_STEP] = step
        self._kernels.scatter_rows(all_uses, uses, slots)

    def _move(self, slots: Array, to: int) -> None:
        """Rows of rising slots become those from ``to`` on, which is not beyond the first of them."""
        for column in self._columns():
            rows = np.empty((len(slots), column.array.shape[1]), column.array.dtype)
            self._kernels.gather_rows(rows, column.array, slots)
            column.array[to : to + len(slots)] = rows


class WholeTable:
    """A table of keys 0 .. R - 1 that is there whole: ``rows`` (R, W), changed in place."""

    dropped = layout = 0

    def __init__(self, rows: Array, optimizer: Optimizer, kernels: Any, threads: int = 1) -> None:
        self.width, self.dtype = rows.shape[1], rows.dtype
        self._rows, self._state = rows, optimizer.init(rows)
        self._optimizer, self._kernels, self._threads = optimizer, kernels, threads

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows and their state."""
        return self._rows.nbytes * (1 + len(self._state))

    def pull(self, keys: Array, out: Array | None = None, found: Found | None = None) -> Array:
        """The rows (k, W) of keys (k,) int64: a copy, or written to ``out``. Raises IndexError for a key outside."""
        rows = np.empty((len(keys), self.width), self.dtype) if out is None else out
        self._kernels.gather_rows(rows, self._rows, keys, threads=self._threads)
        return rows

    def shown(self) -> Shown | None:
        """None: a whole table is not shown."""
        return None

    def push(self, keys: Array, gradient: Array, gradient_scale: float, step: int, found: Found | None = None) -> None:
        """As of `Table`. Raises IndexError for a key outside 0 .. R - 1; nothing has changed then."""
        self._optimizer.update_rows(self._rows, self._state, gradient, keys, gradient_scale, step)

    def evict(self, min_pushes: int = 0, since_step: int = 0) -> int:
        """Nothing: a whole table keeps its rows."""
        return 0

    def pieces(self, name: str, shards: int, shard: int) -> Pieces:
        """As of `Table`, for the one shard that has all rows."""
        columns = {"rows": in_memory(self._rows)}
        columns |= {f"state.{state}": in_memory(array) for state, array in self._state.items()}
        return Pieces(tables=[TableRows(name, columns)])

    def restore(self, snapshot: Snapshot, name: str, shards: int, shard: int) -> None:
        """As of `Table`."""
        for block in snapshot.rows_of(name, self._rows, tuple(self._state)):
            self._rows[block.keys] = block.columns["rows"]
            for state, array in self._state.items():
                array[block.keys] = block.columns[f"state.{state}"]

    def blocks(self) -> Iterator[tuple[Array, Array]]:
        """As of `Table`."""
        for start in range(0, len(self), BLOCK):
            rows = self._rows[start : start + BLOCK].copy()
            yield np.arange(start, start + len(rows)), rows


AnyTable: TypeAlias = Table | WholeTable
