"""Tables that every worker has: the rows of all are gathered, and each worker updates its own copy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from hpcps.comm.topology import chunk_bounds
from hpcps.comm.transport import Array
from hpcps.device import HOST, Device, edited
from hpcps.optim import Optimizer
from hpcps.params import Params
from hpcps.rows import Merger, Rows
from hpcps.snapshot import Pieces, Snapshot, TableRows, in_memory
from hpcps.sums import Decoder, Summed

GatherRows = Callable[[list[tuple[Array, Array]]], list[list[tuple[Array, Array]]]]
"""Brings the (keys, values) of all workers together: for each worker, one pair a table."""


class GatheredTables:
    """Every worker has all tables, on its ``device``, gathers the rows of all, and updates them. A collective.

    ``gather`` gives what it brings together on the host, or where one worker's alone is.
    """

    way = "all-gather"

    def __init__(
        self,
        gather: GatherRows,
        params: Params,
        optimizer: Optimizer,
        decoder: Decoder,
        merger: Merger,
        gradient_scale: float,
        device: Device = HOST,
    ) -> None:
        self._gather = gather
        self._tables = {name: params.table(name) for name in params.tables}
        self._optimizer = optimizer
        self._states = {name: optimizer.init(table) for name, table in self._tables.items()}
        self._decoder = decoder
        self._merger = merger
        self._gradient_scale = gradient_scale
        self._device = device

    def update(self, step: int, summed: Summed) -> None:
        """Bring the rows of all workers together and apply them."""
        names = list(summed.rows)
        by_worker = self._gather([summed.rows[name] for name in names])
        merged = self._merger.merge(
            [{name: Rows(*pair) for name, pair in zip(names, pairs, strict=True)} for pairs in by_worker]
        )
        for name, (keys, values) in merged.items():
            gradient = self._device.put(self._decoder.values(values, summed.scale))
            table, state = self._tables[name], self._states[name]
            self._optimizer.update_rows(table, state, gradient, self._device.put(keys), self._gradient_scale, step)

    def pieces(self, rank: int, workers: int) -> Pieces:
        """What worker ``rank`` keeps of the tables, which all have: a part of the rows."""
        found = []
        for name, table in self._tables.items():
            where = slice(*chunk_bounds(len(table), workers)[rank : rank + 2])
            columns = {"rows": in_memory(table[where], self._device.read)}
            for state, array in self._states[name].items():
                columns[f"state.{state}"] = in_memory(array[where], self._device.read)
            found.append(TableRows(name, columns, where.start))
        return Pieces(tables=found)

    def restore(self, snapshot: Snapshot) -> None:
        """Take over the state of all rows."""
        for name, table in self._tables.items():
            with ExitStack() as stack:
                states = {
                    state: stack.enter_context(edited(self._device, array))
                    for state, array in self._states[name].items()
                }
                for block in snapshot.rows_of(name, table, tuple(states)):
                    for state, array in states.items():
                        array[block.keys] = block.columns[f"state.{state}"]
