"""The worker's side of shards in its own process: nothing is sent."""

from __future__ import annotations

from collections.abc import Mapping

from hpcps.comm.transport import Array
from hpcps.rows import PulledRows
from hpcps.server.client import Traffic
from hpcps.server.messages import Counts
from hpcps.server.store import Shard
from hpcps.snapshot import Pieces, Snapshot
from hpcps.sums import Summed


class DirectClient:
    """All shards in the worker's own process, on the worker's own dense parameters: one process with a server strategy.

    The first shard has the tables, of which pulled rows go to ``rows``.
    """

    def __init__(self, shards: list[Shard], slices: list[slice], rows: PulledRows | None = None) -> None:
        self._shards = shards
        self._slices = slices
        self._rows = rows
        if rows is not None:
            rows.pull = self.fetch

    def push(self, step: int, gradient: Summed, slack: int = 0) -> None:
        for shard, part in zip(self._shards, self._slices, strict=True):
            rows = gradient.rows if shard.tables else {}
            shard.push(0, step, Summed(gradient.dense[..., part], gradient.scale, rows), slack != 0)

    def pull(self, step: int, keys: Mapping[str, Array] | None, slack: int = 0) -> int:
        if keys is not None:
            self.fetch(keys)
        return step

    def go_on(self, step: int, keys: Mapping[str, Array] | None) -> None:
        """There is nobody who could go on without the one worker."""

    def fetch(self, keys: Mapping[str, Array]) -> None:
        if self._rows is not None:
            for (name, own), rows in zip(keys.items(), self._shards[0].pull(0, keys), strict=True):
                self._rows.put(name, own, rows)

    def meet(self) -> None:
        """There is one worker."""

    def keep(self) -> None:
        """All shards are among the :meth:`pieces`."""

    def pieces(self) -> Pieces:
        found = Pieces()
        for number, (shard, where) in enumerate(zip(self._shards, self._slices, strict=True)):
            found += shard.pieces(where.start, 1 if shard.tables else len(self._shards), number)
        return found

    def restore(self, snapshot: Snapshot) -> None:
        for number, (shard, where) in enumerate(zip(self._shards, self._slices, strict=True)):
            shard.restore(snapshot, where.start, 1 if shard.tables else len(self._shards), number)

    def finish(self) -> list[Counts]:
        return [Counts(s.updates, s.duplicates, 0, 0, 0, dict(s.staleness)) for s in self._shards]

    def traffic(self) -> Traffic:
        return Traffic(0.0, 0, 0, 0)
