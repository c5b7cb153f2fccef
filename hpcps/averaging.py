"""Workers that train alone for some steps, then average their parameters (``train.strategy = "averaging"``).

Also known as local SGD (Stich, "Local SGD converges fast and communicates little", ICLR 2019); with averaging after
every step at the start, as post-local SGD (Lin, Stich, Patel and Jaggi, "Don't use large mini-batches, use local SGD",
ICLR 2020). Only parameters are averaged: each worker keeps its own optimiser's state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from hpcps.collectives.engine import Engine
from hpcps.collectives.pending import Pending
from hpcps.comm.gather import all_gather_keys
from hpcps.comm.topology import chunk_bounds
from hpcps.comm.transport import Array
from hpcps.exchange import Exchange, Keys
from hpcps.optim import Optimizer, State
from hpcps.params import Params
from hpcps.rows import Merger
from hpcps.snapshot import Flat, Pieces, Snapshot, TableRows, in_memory
from hpcps.sums import Sum


class Touched:
    """Which rows of a table of ``size`` rows were touched: each key once. A byte a row."""

    def __init__(self, size: int) -> None:
        self._is_touched = np.zeros(size, np.bool_)
        self._keys: list[Array] = [np.empty(0, np.int64)]

    def add(self, keys: Array) -> None:
        """Note ``keys``, (k,) int64, distinct."""
        new = keys[~self._is_touched[keys]]
        self._is_touched[new] = True
        self._keys.append(new)

    def take(self) -> Array:
        """The keys added since the last call, distinct, in the order in which they came first."""
        keys = np.concatenate(self._keys)
        self._is_touched[keys] = False
        self._keys = [keys[:0]]
        return keys


class Mean:
    """The mean of all workers' parameters, weighted by their ``samples`` of a batch; the same bits on all workers.

    Cost: one all-reduce of the dense parameters, in place. For tables, an all-gather of the keys of the rows touched
    since the last mean, and one all-reduce of the rows that any worker has touched: elsewhere all have the same.

    A worker's parameters are multiplied by its samples, a whole number, and the sum is divided by the batch: where the
    workers have as many samples each, nothing but the sum and the division rounds.
    """

    def __init__(self, engine: Engine, params: Params, samples: Sequence[int], merger: Merger, kernels: Any) -> None:
        self.params = params
        self.samples = samples[engine.transport.rank]
        self.is_of_one = len(samples) == 1
        common = math.gcd(*samples)
        self._own = self.samples // common
        self._all = sum(samples) // common
        self._engine = engine
        self._merger = merger
        self.rank, self.workers = engine.transport.rank, len(samples)
        self._gather_rows = kernels.gather_rows
        self._scatter_rows = kernels.scatter_rows
        self._tables = [params.table(name) for name in params.tables]
        self._touched = {} if self.is_of_one else {name: Touched(len(params.table(name))) for name in params.tables}
        self._dense = params.dense.flat
        self._start = engine.prepare(self._dense)
        rows = "; touched rows of tables: all-reduce" if params.tables and not self.is_of_one else ""
        self.way = engine.name(self._dense.nbytes) + rows

    def touch(self, name: str, keys: Array) -> None:
        """Note that this worker has changed rows of a table."""
        if not self.is_of_one:
            self._touched[name].add(keys)

    def start(self) -> Pending:
        """Begin, all workers at the same step. Until :meth:`finish` is done the parameters are not to be used."""
        self._weigh(self._dense)
        return self._start()

    def finish(self, pending: Pending) -> None:
        """Wait for what :meth:`start` returned, and average the touched rows. Blocks."""
        pending.wait()
        self._divide(self._dense)
        if self._tables:
            self._average_rows()

    def _average_rows(self) -> None:
        gathered = all_gather_keys(self._engine.transport, [touched.take() for touched in self._touched.values()])
        keys = [self._merger.union(by_worker) for by_worker in gathered]  # ascending: the same order everywhere
        bounds = [0, *accumulate(len(own) * table.shape[1] for own, table in zip(keys, self._tables, strict=True))]
        rows = np.empty(bounds[-1], self._dense.dtype)
        pieces = [
            rows[low:high].reshape(-1, table.shape[1])
            for (low, high), table in zip(pairwise(bounds), self._tables, strict=True)
        ]
        for piece, table, own in zip(pieces, self._tables, keys, strict=True):
            self._gather_rows(piece, table, own)
        self._weigh(rows)
        self._engine.allreduce(rows)
        self._divide(rows)
        for piece, table, own in zip(pieces, self._tables, keys, strict=True):
            self._scatter_rows(table, piece, own)

    def _weigh(self, x: Array) -> None:
        if self._own != 1:
            np.multiply(x, self._own, out=x)

    def _divide(self, x: Array) -> None:
        np.divide(x, self._all, out=x)


class AveragingExchange(Exchange):
    """Each worker applies its own mean gradient, with its own optimiser state; now and then parameters are averaged.

    An averaging begins after each of the first ``warmup`` steps, then when the workers have been alone for ``every``
    steps, and at the end of an epoch. It is under way while the samples of the next batch are loaded.
    """

    def __init__(self, mean: Mean, optimizer: Optimizer, gradients: Sum, every: int, warmup: int = 0) -> None:
        params = mean.params
        self._mean = mean
        self._optimizer = optimizer
        self._gradients = gradients
        self._every = every
        self._warmup = warmup
        self._gradient_scale = 1.0 / mean.samples
        self._dense = params.dense.flat
        self._state = optimizer.init(self._dense)
        self._tables = {name: params.table(name) for name in params.tables}
        self._table_states = {name: optimizer.init(table) for name, table in self._tables.items()}
        self._alone = 0
        self._ahead = 0
        """How many more updates than steps there were, in a run that began with old parameters"""
        self._averagings = 0
        self._pending: Pending | None = None
        often = "every step" if every == 1 else f"every {every} steps"
        if warmup and every > 1:
            often += f", every step up to step {warmup}"
        self.way = f"averaging {often}: {mean.way}"

    def told(self) -> dict[str, Any]:
        return {"averagings": self._averagings}

    def start(self, step: int, flush: bool = False) -> None:
        """Apply this worker's gradient of ``step``, and begin an averaging where one is due."""
        is_due = self.is_common(step)
        self._update(step)
        self._alone += 1
        if is_due:
            self._begin()

    def wait(self, keys: Callable[[], Keys] | None = None) -> None:
        """Finish the averaging under way; at the end of an epoch, make one of what was trained alone."""
        if keys is None and self._alone:
            self._begin()
        if self._pending is not None:
            self._mean.finish(self._pending)
            self._pending = None
            self._averagings += 1

    def fetch(self, keys: Keys) -> None:
        """Every worker has all tables."""

    def meet(self) -> None:
        """Nobody has shards."""

    def finish(self) -> None:
        """Nothing is left to do: the last step's parameters were asked for."""

    def keep(self) -> None:
        """Nobody has shards."""

    def is_common(self, step: int) -> bool:
        """Whether the parameters of the next step, ``step``, will be averaged."""
        return self._alone + 1 >= self._every or step <= self._warmup

    def updates(self, step: int) -> int:
        return step + self._ahead

    def pieces(self) -> Pieces:
        """Parameters, which all have, are kept by the first; each worker keeps its own state."""
        rank, workers, count = self._mean.rank, self._mean.workers, len(self._dense)
        flats = [Flat("parameters", 0, in_memory(self._dense))] if rank == 0 else []
        flats += [Flat(f"own_state.{name}", rank * count, in_memory(x)) for name, x in self._state.items()]
        tables = []
        for name, table in self._tables.items():
            where = slice(*chunk_bounds(len(table), workers)[rank : rank + 2])
            tables.append(TableRows(name, {"rows": in_memory(table[where])}, where.start))
            flats += [
                Flat(f"own_table.{name}.{state}", rank * x.size, in_memory(x.reshape(-1)))
                for state, x in self._table_states[name].items()
            ]
        return Pieces(flats, tables)

    def restore(self, snapshot: Snapshot) -> None:
        rank, workers = self._mean.rank, self._mean.workers
        self._ahead = snapshot.position.updates - snapshot.position.steps
        for name, x in self._state.items():
            snapshot.fill_own_state(x, name, rank, workers)
        for table, states in self._table_states.items():
            for state, x in states.items():
                name = f"own_table.{table}.{state}"
                if snapshot.has(name) and snapshot.position.workers == workers:
                    snapshot.fill(x.reshape(-1), name, rank * x.size)
            if not snapshot.names(f"own_table.{table}.") or snapshot.position.workers != workers:
                self._restore_rows(snapshot, table, states)

    def _restore_rows(self, snapshot: Snapshot, table: str, states: State) -> None:
        """The state of a table of which there is one, or the mean of what other workers had."""
        for block in snapshot.rows_of(table, self._tables[table], tuple(states)):
            for state, x in states.items():
                x[block.keys] = block.columns[f"state.{state}"]

    def _begin(self) -> None:
        self._alone = 0
        if not self._mean.is_of_one:
            self._pending = self._mean.start()

    def _update(self, step: int) -> None:
        summed = self._gradients.finish()
        step = self.updates(step)
        self._optimizer.update(self._dense, self._state, summed.dense, self._gradient_scale, step)
        for name, (keys, values) in summed.rows.items():
            table, state = self._tables[name], self._table_states[name]
            self._optimizer.update_rows(table, state, values, keys, self._gradient_scale, step)
            self._mean.touch(name, keys)
