"""Where workers agree: part gradients in, fresh parameters out, by all-reduce or through the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from hpcps.collectives.engine import Start
from hpcps.collectives.pending import Finished, Pending
from hpcps.comm.transport import Array
from hpcps.optim import Optimizer
from hpcps.params import Params
from hpcps.reduction import Reduction
from hpcps.rows import Merger, Rows
from hpcps.server.client import Client
from hpcps.sums import Decoder, Sum, Summed

Keys = Sequence[Mapping[str, Array]]
"""Which rows of each table are read next, by part; the same row may be in several parts."""


NO_COUNTS: Mapping[str, int] = {}


class Waiting(Protocol):
    """A step's exchange on its way."""

    def wait(self, keys: Keys | None = None) -> None:
        """Block until this worker's parameters contain the step: dense ones all, of the tables at least the rows
        ``keys``; all rows if None."""


class Exchange(Protocol):
    """``start`` sends off a step's gradient; waiting for what it returns makes the parameters fresh.

    Between the two the worker may do anything but change parameters and gradients. One step at a time. ``way`` says
    in a few words how it is done; ``counts`` is what else a run's summary tells of it.
    """

    way: str

    @property
    def counts(self) -> Mapping[str, int]: ...

    def start(self, step: int) -> Waiting:
        """Send off the sum of the part gradients of ``step`` (from 1)."""

    def finish(self) -> None:
        """After the last step."""


class Bucket:
    """Neighbouring dense parameters whose gradient is summed as one: ``params[where]``."""

    def __init__(self, where: slice, reduction: Reduction, params: Array, optimizer: Optimizer) -> None:
        self.where = where
        self._reduction = reduction
        self._mine = params[where][reduction.part]
        self._optimizer = optimizer
        self._state = optimizer.init(self._mine)
        self._spread = reduction.prepare_spread(params[where])
        self._seen: Array | None = None
        self._gradient = self._mine
        self._start: Start = Finished
        self.pending: Pending | None = None

    def start(self, gradient: Array) -> None:
        """Begin the sum of the bucket's part of ``gradient``: of all dense parameters, (n,), or pieces of it (m, n)."""
        if gradient is not self._seen:  # it is the same array in every step
            self._seen, mine = gradient, gradient[..., self.where]
            self._gradient = (mine if mine.ndim == 1 else mine[0])[self._reduction.part]
            self._start = self._reduction.prepare(mine)
        self.pending = self._start()

    def update(self, step: int, gradient_scale: float) -> Pending:
        """Wait for the sum, apply it, and begin to bring the parameters to all workers."""
        assert self.pending is not None
        self.pending.wait()
        self.pending = None
        self._optimizer.update(self._mine, self._state, self._gradient, gradient_scale, step)
        return self._spread()


GatherRows = Callable[[list[tuple[Array, Array]]], list[list[tuple[Array, Array]]]]
"""Brings the (keys, values) of all workers together: for each worker, one pair a table."""


class AllreduceExchange:
    """Gradients are all-reduced, and the parameters are updated by all workers, or by each a part.

    ``buckets`` make up the dense parameters, in the order in which their gradients become final. The rows of tables are
    brought together by ``gather`` and merged. ``way``: how the buckets are summed.
    """

    counts: Mapping[str, int] = NO_COUNTS

    def __init__(
        self,
        buckets: Sequence[Bucket],
        way: str,
        gather: GatherRows,
        params: Params,
        optimizer: Optimizer,
        gradients: Sum,
        decoder: Decoder,
        merger: Merger,
        gradient_scale: float,
    ) -> None:
        self._buckets = buckets
        self._gather = gather
        self._tables = {name: params.table(name) for name in params.tables}
        self._optimizer = optimizer
        self._table_states = {name: optimizer.init(table) for name, table in self._tables.items()}
        self._gradients = gradients
        self._decoder = decoder
        self._merger = merger
        self._gradient_scale = gradient_scale
        self.way = f"all-reduce: {way}" + ("; rows of tables: all-gather" if self._tables else "")

    def early(self, bucket: int) -> None:
        """The gradient of a bucket is final, while others are still computed: begin its sum, and take those begun
        before further. Only where one part is all that this worker computes."""
        self._buckets[bucket].start(self._gradients.buffer)
        for earlier in self._buckets[:bucket]:
            if earlier.pending is not None:
                earlier.pending.done()

    def start(self, step: int) -> Waiting:
        summed = self._gradients.finish()
        for bucket in self._buckets:
            if bucket.pending is None:
                bucket.start(summed.dense)
        return _Reducing(self, step, summed)

    def update(self, step: int, summed: Summed) -> None:
        """Apply the all-reduced gradient. A collective."""
        spreading = [bucket.update(step, self._gradient_scale) for bucket in self._buckets]
        for parameters in spreading:
            parameters.wait()
        if summed.rows:
            self.update_tables(step, summed)

    def update_tables(self, step: int, summed: Summed) -> None:
        """Bring the rows of all workers together and apply them. A collective."""
        names = list(summed.rows)
        by_worker = self._gather([summed.rows[name] for name in names])
        merged = self._merger.merge(
            [{name: Rows(*pair) for name, pair in zip(names, pairs, strict=True)} for pairs in by_worker]
        )
        for name, (keys, values) in merged.items():
            gradient = self._decoder.values(values, summed.scale)
            table, state = self._tables[name], self._table_states[name]
            self._optimizer.update_rows(table, state, gradient, keys, self._gradient_scale, step)

    def finish(self) -> None:
        """Nothing is left to do."""


class _Reducing:
    def __init__(self, exchange: AllreduceExchange, step: int, summed: Summed) -> None:
        self._exchange = exchange
        self._step = step
        self._summed = summed

    def wait(self, keys: Keys | None = None) -> None:
        self._exchange.update(self._step, self._summed)


class ServerExchange:
    """Gradients are pushed to the shards, which apply the update; fresh parameters are pulled."""

    way = "push to shards, pull from them"
    counts: Mapping[str, int] = NO_COUNTS

    def __init__(self, client: Client, gradients: Sum, merger: Merger) -> None:
        self._client = client
        self._gradients = gradients
        self._merger = merger

    def start(self, step: int) -> Waiting:
        self._client.push(step, self._gradients.finish())
        return _Pulling(self._client, self._merger, step)

    def finish(self) -> None:
        self._client.finish()


class _Pulling:
    def __init__(self, client: Client, merger: Merger, step: int) -> None:
        self._client = client
        self._merger = merger
        self._step = step

    def wait(self, keys: Keys | None = None) -> None:
        wanted = None if keys is None else {name: self._union(keys, name) for name in keys[0]}
        self._client.pull(self._step, wanted)

    def _union(self, keys: Keys, name: str) -> Array:
        return self._merger.union([part[name] for part in keys])


def largest_of(ranks: int, rank: int, allreduce: Callable[[Array], object]) -> Callable[[float], float]:
    """The agreement on the largest of one number a worker; ``allreduce`` sums arrays of (ranks,) float64 in place."""
    numbers = np.zeros(ranks, np.float64)

    def agree(mine: float) -> float:
        numbers.fill(0.0)
        numbers[rank] = mine
        allreduce(numbers)
        return float(numbers.max())

    return agree
