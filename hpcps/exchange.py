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
from hpcps.server.client import Client, Traffic
from hpcps.server.messages import Counts
from hpcps.sums import Decoder, Sum, Summed

Keys = Sequence[Mapping[str, Array]]
"""Which rows of each table are read next, by part; the same row may be in several parts."""


class Waiting(Protocol):
    """A step's exchange on its way."""

    def wait(self, keys: Keys | None = None) -> None:
        """Block until this worker's parameters contain the step: dense ones all, of the tables at least the rows
        ``keys``; all rows if None."""


class Exchange(Protocol):
    """``start`` sends off a step's gradient; waiting for what it returns makes the parameters fresh.

    Between the two the worker may do anything but change parameters and gradients. One step at a time. ``way`` says
    in a few words how it is done.
    """

    way: str

    def start(self, step: int) -> Waiting:
        """Send off the sum of the part gradients of ``step`` (from 1)."""

    def finish(self) -> None:
        """After the last step."""

    def traffic(self) -> Traffic | None:
        """What this worker has had to do with shards so far; None where there are none."""

    def counts(self) -> list[Counts]:
        """What each shard has done, after ``finish``."""


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


class TableExchange(Protocol):
    """How the tables of a model get fresh, whose dense parameters are all-reduced."""

    way: str

    def start(self, step: int, summed: Summed) -> None:
        """The rows of ``step`` are final. Does not block."""

    def wait(self, step: int, summed: Summed, keys: Keys | None) -> None:
        """Make the rows ``keys`` fresh, or all; blocks. A collective, after that of the dense parameters."""

    def finish(self) -> list[Counts]:
        """After the last step. What each shard has done."""

    def traffic(self) -> Traffic | None:
        """What this worker has had to do with shards so far; None where there are none."""


class GatheredTables:
    """Every worker has all tables, gathers the rows of all, and updates them."""

    way = "all-gather"

    def __init__(
        self,
        gather: GatherRows,
        params: Params,
        optimizer: Optimizer,
        decoder: Decoder,
        merger: Merger,
        gradient_scale: float,
    ) -> None:
        self._gather = gather
        self._tables = {name: params.table(name) for name in params.tables}
        self._optimizer = optimizer
        self._states = {name: optimizer.init(table) for name, table in self._tables.items()}
        self._decoder = decoder
        self._merger = merger
        self._gradient_scale = gradient_scale

    def start(self, step: int, summed: Summed) -> None:
        """Rows are gathered later, when the dense parameters are done."""

    def wait(self, step: int, summed: Summed, keys: Keys | None) -> None:
        names = list(summed.rows)
        by_worker = self._gather([summed.rows[name] for name in names])
        merged = self._merger.merge(
            [{name: Rows(*pair) for name, pair in zip(names, pairs, strict=True)} for pairs in by_worker]
        )
        for name, (touched, values) in merged.items():
            gradient = self._decoder.values(values, summed.scale)
            table, state = self._tables[name], self._states[name]
            self._optimizer.update_rows(table, state, gradient, touched, self._gradient_scale, step)

    def finish(self) -> list[Counts]:
        return []

    def traffic(self) -> Traffic | None:
        return None


class ShardedTables:
    """Rows are pushed to shards, and pulled from them."""

    way = "push to shards, pull from them"

    def __init__(self, client: Client, merger: Merger) -> None:
        self.client = client
        self._merger = merger

    def start(self, step: int, summed: Summed) -> None:
        self.client.push(step, summed)

    def wait(self, step: int, summed: Summed, keys: Keys | None) -> None:
        self.client.pull(step, None if keys is None else union_of(self._merger, keys))

    def finish(self) -> list[Counts]:
        return self.client.finish()

    def traffic(self) -> Traffic | None:
        return self.client.traffic()


class AllreduceExchange:
    """Gradients are all-reduced, and the parameters are updated by all workers, or by each a part.

    ``buckets`` make up the dense parameters, in the order in which their gradients become final. ``tables``: where the
    model has any. ``way``: how the buckets are summed.
    """

    def __init__(
        self, buckets: Sequence[Bucket], way: str, gradients: Sum, gradient_scale: float, tables: TableExchange | None
    ) -> None:
        self.tables = tables
        self.way = f"all-reduce: {way}" + ("" if tables is None else f"; rows of tables: {tables.way}")
        self._buckets = buckets
        self._gradients = gradients
        self._gradient_scale = gradient_scale
        self._counts: list[Counts] = []

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
        if self.tables is not None:
            self.tables.start(step, summed)
        return _Reducing(self, step, summed)

    def update(self, step: int, summed: Summed, keys: Keys | None) -> None:
        """Apply the all-reduced gradient. A collective."""
        spreading = [bucket.update(step, self._gradient_scale) for bucket in self._buckets]
        for parameters in spreading:
            parameters.wait()
        if self.tables is not None:
            self.tables.wait(step, summed, keys)

    def finish(self) -> None:
        if self.tables is not None:
            self._counts = self.tables.finish()

    def traffic(self) -> Traffic | None:
        return None if self.tables is None else self.tables.traffic()

    def counts(self) -> list[Counts]:
        return self._counts


class _Reducing:
    def __init__(self, exchange: AllreduceExchange, step: int, summed: Summed) -> None:
        self._exchange = exchange
        self._step = step
        self._summed = summed

    def wait(self, keys: Keys | None = None) -> None:
        self._exchange.update(self._step, self._summed, keys)


class ServerExchange:
    """Gradients are pushed to the shards, which apply the update; fresh parameters are pulled.

    ``slack``: how many steps of any other worker the parameters may miss, -1 for any number; it may be changed between
    steps. The first ``warmup_steps`` are synchronous.
    """

    def __init__(self, client: Client, gradients: Sum, merger: Merger, way: str, slack: int, warmup_steps: int) -> None:
        self.way = way
        self.slack = slack
        self.client = client
        self._counts: list[Counts] = []
        self._gradients = gradients
        self._merger = merger
        self._warmup_steps = warmup_steps

    def start(self, step: int) -> Waiting:
        slack = 0 if step <= self._warmup_steps else self.slack
        self.client.push(step, self._gradients.finish(), slack)
        return _Pulling(self.client, self._merger, step, slack)

    def finish(self) -> None:
        self._counts = self.client.finish()

    def traffic(self) -> Traffic | None:
        return self.client.traffic()

    def counts(self) -> list[Counts]:
        return self._counts


class _Pulling:
    def __init__(self, client: Client, merger: Merger, step: int, slack: int) -> None:
        self._client = client
        self._merger = merger
        self._step = step
        self._slack = slack

    def wait(self, keys: Keys | None = None) -> None:
        wanted = None if keys is None else union_of(self._merger, keys)
        self._client.pull(self._step, wanted, self._slack)


def union_of(merger: Merger, keys: Keys) -> dict[str, Array]:
    """The distinct rows of each table."""
    return {name: merger.union([part[name] for part in keys]) for name in keys[0]}


def largest_of(ranks: int, rank: int, allreduce: Callable[[Array], object]) -> Callable[[float], float]:
    """The agreement on the largest of one number a worker; ``allreduce`` sums arrays of (ranks,) float64 in place."""
    numbers = np.zeros(ranks, np.float64)

    def agree(mine: float) -> float:
        numbers.fill(0.0)
        numbers[rank] = mine
        allreduce(numbers)
        return float(numbers.max())

    return agree
