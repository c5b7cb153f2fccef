"""Where workers agree: part gradients in, fresh parameters out, by all-reduce or through the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from hpcps.comm.transport import Array
from hpcps.optim import Optimizer
from hpcps.params import Params
from hpcps.rows import Merger, Rows
from hpcps.server.client import Client
from hpcps.sums import Decoder, Sum, Summed

Keys = Sequence[Mapping[str, Array]]
"""Which rows of each table are read next, by part; the same row may be in several parts."""


class Waiting(Protocol):
    """A step's exchange on its way."""

    def wait(self, keys: Keys | None = None) -> None:
        """Block until this worker's parameters contain the step: dense ones all, of the tables at least the rows
        ``keys``; all rows if None."""


class Pending(Protocol):
    """A collective on its way."""

    def wait(self) -> None:
        """Block until it is finished on this rank."""


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


class Allreduce(Protocol):
    """A way to sum one array over the workers, in two halves."""

    name: str

    def start(self, x: Array) -> Pending:
        """Begin; ``x`` holds the sum once the returned ticket has been waited for."""


GatherRows = Callable[[list[tuple[Array, Array]]], list[list[tuple[Array, Array]]]]
"""Brings the (keys, values) of all workers together: for each worker, one pair a table."""


class AllreduceExchange:
    """Gradients are all-reduced; every worker applies the same update to its own copy of the parameters.

    Dense gradients are summed by ``allreduce``; the rows of tables are brought together by ``gather`` and merged.
    """

    def __init__(
        self,
        allreduce: Allreduce,
        gather: GatherRows,
        params: Params,
        optimizer: Optimizer,
        gradients: Sum,
        decoder: Decoder,
        merger: Merger,
        gradient_scale: float,
    ) -> None:
        self._allreduce = allreduce
        self._gather = gather
        self._dense = params.dense.flat
        self._tables = {name: params.table(name) for name in params.tables}
        self._optimizer = optimizer
        self._state = optimizer.init(self._dense)
        self._table_states = {name: optimizer.init(table) for name, table in self._tables.items()}
        self._gradients = gradients
        self._decoder = decoder
        self._merger = merger
        self._gradient_scale = gradient_scale
        self.way = f"all-reduce: {allreduce.name}" + ("; rows of tables: all-gather" if self._tables else "")

    def start(self, step: int) -> Waiting:
        summed = self._gradients.finish()
        return _Reducing(self, self._allreduce.start(summed.dense), step, summed)

    def update(self, step: int, summed: Summed) -> None:
        """Apply the all-reduced dense gradient."""
        gradient = self._decoder.gradient(summed.dense, summed.scale)
        self._optimizer.update(self._dense, self._state, gradient, self._gradient_scale, step)

    def update_tables(self, step: int, summed: Summed) -> None:
        """Bring the rows of all workers together and apply them. A collective."""
        names = list(summed.rows)
        by_worker = self._gather([summed.rows[name] for name in names])
        merged = self._merger.merge(
            [{name: Rows(*pair) for name, pair in zip(names, pairs, strict=True)} for pairs in by_worker]
        )
        for name, (keys, values) in merged.items():
            gradient = self._decoder.gradient(values, summed.scale)
            table, state = self._tables[name], self._table_states[name]
            self._optimizer.update_rows(table, state, gradient, keys, self._gradient_scale, step)

    def finish(self) -> None:
        """Nothing is left to do."""


class _Reducing:
    def __init__(self, exchange: AllreduceExchange, pending: Pending, step: int, summed: Summed) -> None:
        self._exchange = exchange
        self._pending = pending
        self._step = step
        self._summed = summed

    def wait(self, keys: Keys | None = None) -> None:
        self._pending.wait()
        self._exchange.update(self._step, self._summed)
        if self._summed.rows:
            self._exchange.update_tables(self._step, self._summed)


class ServerExchange:
    """Gradients are pushed to the shards, which apply the update; fresh parameters are pulled."""

    way = "push to shards, pull from them"

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
