"""How the gradient of a bucket of parameters is summed over the workers, and what of it each worker updates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from hpcps.collectives.engine import Engine, Start, pieces_program
from hpcps.collectives.pending import Finished, Pending
from hpcps.comm.codes import Residuals
from hpcps.comm.meeting import Meeting
from hpcps.comm.order import Order
from hpcps.comm.topology import chunk_bounds
from hpcps.comm.transport import Array

SHARDED_BYTES = 256 << 10
"""From here on each worker updates a chunk and hands it out: less work than for each to update all."""

Prepare = Callable[[Array], Start]
NOTHING: Residuals = {}


class Shown(NamedTuple):
    """All workers' gradients of a bucket, for an update that adds them up itself."""

    start: Start
    """Gives what waits until all have theirs. None may be changed until the parameters have been spread"""
    gradients: Array
    """(workers, N)"""
    column: int
    """Where the numbers of this worker's ``part`` begin"""


class Reduction(Protocol):
    """Sums of a bucket's gradient, one after another. ``part`` is what of the bucket this worker updates."""

    name: str
    part: slice
    residuals: Residuals
    """What compressed sums keep to be sent later; empty where nothing is left out"""
    is_read: bool
    """Whether others read ``part`` of the parameters where this worker has them"""

    def prepare(self, x: Array) -> Start:
        """A function that begins a sum of all workers' ``x``, (n,); when that is done ``x[part]`` is the sum. In a
        reproducible run ``x`` holds pieces, (m, n), and ``x[0, part]`` is."""

    def show(self, x: Array, is_wanted: bool) -> Shown | None:
        """What takes the place of :meth:`prepare` where this worker's update could add up all workers' ``x`` itself;
        None, on all workers, where that is impossible, or one does not want it. A collective."""

    def prepare_spread(self, params: Array) -> Start:
        """A function that begins to bring the bucket's parameters, (n,), of which this worker has updated ``part``, to
        all workers."""


class Whole:
    """All workers get the whole sum, and update all of the bucket."""

    is_read = False

    def __init__(self, name: str, prepare: Prepare, count: int, residuals: Residuals = NOTHING) -> None:
        self.name = name
        self.prepare = prepare
        self.residuals = residuals
        self.part = slice(0, count)

    def show(self, x: Array, is_wanted: bool) -> Shown | None:
        return None

    def prepare_spread(self, params: Array) -> Start:
        return Finished


class Sharded:
    """Each worker gets the sum of a chunk, updates it, and hands the parameters out: the update is shared, too.

    ``is_by_rank``: the sum is that of the workers' arrays, added in their order.
    """

    residuals = NOTHING

    def __init__(self, name: str, prepare: Prepare, count: int, engine: Engine, is_by_rank: bool) -> None:
        self.name = f"{name}, update sharded"
        self._engine, self._is_shown = engine, is_by_rank and engine.layout.is_one_memory
        self.prepare = prepare
        self.prepare_spread = partial(engine.prepare_all_gather, is_late=True)
        self.is_read = engine.layout.is_one_memory
        bounds, rank = chunk_bounds(count, engine.layout.ranks), engine.transport.rank
        self.part = slice(bounds[rank], bounds[rank + 1])

    def show(self, x: Array, is_wanted: bool) -> Shown | None:
        if not self._is_shown:
            return None
        given = x if x.ndim == 1 else x[0]
        found = self._engine.transport.memory.beside(given) if is_wanted else None
        rows, column = found or (None, -1)
        columns = Meeting(self._engine.transport).gather(np.array([column]))
        if rows is None or (columns != column).any():
            return None
        return Shown(self._engine.prepare_meeting(given), rows, column + self.part.start)


def started_by(start: Callable[[Array], Pending]) -> Prepare:
    """For sums that have nothing to prepare."""
    return lambda x: lambda: start(x)


def can_shard(engine: Engine, size_bytes: int) -> bool:
    """Whether a bucket of so many bytes is worth a sharded update, and its algorithm has halves."""
    algorithm = engine.choice.pick(size_bytes, engine.layout)
    return engine.layout.ranks > 1 and size_bytes >= SHARDED_BYTES and algorithm in ("memory", "ring")


def adds_in_memory(engine: Engine, size_bytes: int) -> bool:
    """Whether workers add up a gradient of so many bytes where they see each other's, each its chunk: nothing of that
    goes on beside other work, so to begin with a part gains nothing, and each further bucket costs two meetings."""
    return engine.layout.is_one_memory and can_shard(engine, size_bytes)


def of_sums(engine: Engine, count: int, itemsize: int, shards: bool) -> Reduction:
    """For gradients of ``count`` numbers, each worker's added up."""
    name = engine.name(count * itemsize)
    if shards and can_shard(engine, count * itemsize):
        return Sharded(name, engine.prepare_reduce_scatter, count, engine, is_by_rank=True)
    return Whole(name, engine.prepare, count)


def of_pieces(engine: Engine, order: Order, count: int, itemsize: int, shards: bool) -> Reduction | None:
    """For the pieces of a reproducible run, added in ``order``; None where that takes messages of its own."""
    is_sharded = shards and can_shard(engine, count * itemsize)
    is_by_rank = order.counts in ([1], [1, 1])
    if is_by_rank:  # the only sum of two arrays is the same by any all-reduce
        sums: Prepare = engine.prepare_reduce_scatter if is_sharded else engine.prepare
        name = engine.name(count * itemsize)

        def prepare(x: Array) -> Start:
            return sums(x[0])

    elif engine.layout.is_one_memory:
        name, program = "shared memory, in tree order", pieces_program(order)

        def prepare(x: Array) -> Start:
            return engine.prepare_pieces(x.reshape(-1), count, program, is_sharded)

    else:
        return None
    return Sharded(name, prepare, count, engine, is_by_rank) if is_sharded else Whole(name, prepare, count)
