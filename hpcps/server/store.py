"""One shard of the parameters: it adds up what the workers push and updates itself."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpcps.comm.order import Order
from hpcps.comm.transport import Array
from hpcps.errors import CommError
from hpcps.optim import Optimizer
from hpcps.rows import ByTable, Merger
from hpcps.sums import Decoder, Summed

NO_TABLES: Mapping[str, Array] = {}


class Shard:
    """Dense parameters of (n,), its rows of the tables (R, W), and their optimiser state.

    ``clock`` counts the steps that they contain. A step's gradient is complete when every worker has pushed. Pushes
    are added in ``order``, worker after worker, as soon as it allows, so that the bits do not depend on who came first.
    """

    def __init__(
        self,
        params: Array,
        optimizer: Optimizer,
        decoder: Decoder,
        merger: Merger,
        order: Order,
        gradient_scale: float,
        tables: Mapping[str, Array] = NO_TABLES,
    ) -> None:
        self.params = params
        self.tables = tables
        self.clock = 0
        self._optimizer = optimizer
        self._state = optimizer.init(params)
        self._table_states = {name: optimizer.init(table) for name, table in tables.items()}
        self._decoder = decoder
        self._merger = merger
        self._adds = [order.of_worker(worker) for worker in range(len(order.counts))]
        self._gradient_scale = gradient_scale
        self._sums: list[Array] = []
        self._rows: list[ByTable] = []
        self._early: dict[int, Summed] = {}
        self._added = 0

    def push(self, worker: int, step: int, gradient: Summed) -> bool:
        """Take one worker's gradient for the next step; it may not be changed until the step is complete.

        Returns whether this completed the step, so that parameters are fresh. Raises CommError on a push out of turn
        or of another number of pieces, or of rows that this shard does not have.
        """
        if step != self.clock + 1 or worker < self._added or worker in self._early:
            raise CommError(f"worker {worker} pushed step {step} to a shard that is at step {self.clock}")
        if len(np.atleast_2d(gradient.dense)) != len(self._adds[worker]):
            raise CommError(f"worker {worker} pushed {len(gradient.dense)} pieces, not {len(self._adds[worker])}")
        self._early[worker] = gradient
        while self._added in self._early:
            self._add(self._early.pop(self._added))
        if self._added < len(self._adds):
            return False
        self._update(gradient.scale)
        return True

    def pull(self, keys: Mapping[str, Array] | None) -> dict[str, Array]:
        """Rows (k, W) of each table, copies; all rows if None. Raises CommError for rows that are not there."""
        try:
            return {name: table if keys is None else table[keys[name]] for name, table in self.tables.items()}
        except IndexError as error:
            raise CommError(f"a worker asked for a row that the shard does not have: {error}") from error

    def _add(self, gradient: Summed) -> None:
        for piece, adds in zip(np.atleast_2d(gradient.dense), self._adds[self._added], strict=True):
            self._sums.append(piece)
            for _ in range(adds):
                last = self._sums.pop()
                self._decoder.add_into(self._sums[-1], last)
        if gradient.rows:
            self._rows.append(gradient.rows)
        self._added += 1

    def _update(self, scale: float) -> None:
        (gradient,) = self._sums
        self.clock += 1
        self._optimizer.update(self.params, self._state, gradient, self._gradient_scale, self.clock)
        for name, (keys, values) in self._merger.merge(self._rows).items():
            self._update_table(name, keys, self._decoder.values(values, scale))
        self._sums = []
        self._rows = []
        self._added = 0

    def _update_table(self, name: str, keys: Array, gradient: Array) -> None:
        table, state = self.tables[name], self._table_states[name]
        try:
            self._optimizer.update_rows(table, state, gradient, keys, self._gradient_scale, self.clock)
        except IndexError as error:
            raise CommError(f"a worker pushed a row that the shard does not have: {error}") from error
