"""Where workers agree: part gradients in, fresh parameters out, by all-reduce or through the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from hpcps.bucket import Bucket
from hpcps.comm.transport import Array
from hpcps.gathered import GatheredTables
from hpcps.rows import Merger
from hpcps.server.client import Client, Traffic
from hpcps.server.filters import RowFilter
from hpcps.server.messages import Counts
from hpcps.snapshot import Pieces, Snapshot
from hpcps.sums import Sum, Summed

Keys = Sequence[Mapping[str, Array]]
"""Which rows of each table are read next, by part; the same row may be in several parts."""


class Exchange(Protocol):
    """``start`` sends off a step's gradient; ``wait`` makes the parameters fresh.

    Between the two the worker may do anything but change parameters and gradients. One step at a time. ``way`` says
    in a few words how it is done.
    """

    way: str

    def start(self, step: int, flush: bool = False) -> None:
        """Send off the sum of the part gradients of ``step`` (from 1); ``flush``: and what was kept back of earlier
        ones, for the parameters are to be looked at after this step."""

    def wait(self, keys: Callable[[], Keys] | None = None) -> None:
        """Block until this worker's parameters contain the step: dense ones all, of the tables at least the rows that
        ``keys`` tells. If None, all workers' steps up to this one, and no rows: see ``fetch``."""

    def reached(self, step: int) -> int:
        """After ``wait``: the step that the parameters have come to. It is later than ``step``, which was started
        last, where others have gone on without this worker; then comes :meth:`go_on`."""
        return step

    def go_on(self, step: int, keys: Keys | None) -> None:
        """Leave out the steps up to ``step``, to which the parameters have come, and make rows fresh that are read
        next, if any are. Only after :meth:`reached` has told of such a step."""
        raise AssertionError(f"{self.way}: no step is taken without one of the workers")

    def fetch(self, keys: Keys) -> None:
        """Make these rows fresh, when no step is under way. A collective."""

    def meet(self) -> None:
        """Block until all workers have come here: to be called before they wait for each other elsewhere. A worker
        whose rank holds a shard serves it meanwhile, as it does in all calls of an exchange, and in them alone."""

    def finish(self) -> None:
        """After the last step."""

    def is_common(self, step: int) -> bool:
        """Whether all workers will have the same parameters after ``step``, the next one, if they then wait without
        ``keys``."""
        return True

    def updates(self, step: int) -> int:
        """How often the optimiser has changed the parameters, after ``step``."""
        return step

    def pieces(self) -> Pieces:
        """What this worker has of the run's state, in memory that stays so until the next step. To be asked for when
        the step was waited for without ``keys``."""
        return Pieces()

    def keep(self) -> None:
        """Have shards on other ranks, and on this one, keep their state for a checkpoint: as :meth:`meet`."""

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot: before the first step. Parameters are there already. Raises CheckpointError."""

    def traffic(self) -> Traffic | None:
        """What this worker has had to do with shards so far; None where there are none."""
        return None

    def told(self) -> dict[str, Any]:
        """What else there is to tell of a run, after ``finish``."""
        return {}


class AllreduceExchange(Exchange):
    """Gradients are all-reduced, and the parameters are updated by all workers, or by each a part.

    ``buckets`` make up the dense parameters, in the order in which their gradients become final; ``way``: how they are
    summed. Rows are gathered in ``tables``, or go through ``shards``, which hold no dense parameters. ``place``: the
    worker's number and how many there are.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        way: str,
        gradients: Sum,
        tables: GatheredTables | None = None,
        shards: ServerExchange | None = None,
        place: tuple[int, int] = (0, 1),
    ) -> None:
        rows = shards or tables
        self.way = f"all-reduce: {way}" + ("" if rows is None else f"; rows of tables: {rows.way}")
        self._buckets = buckets
        self._gradients = gradients
        self._tables = tables
        self._shards = shards
        self._step = 0
        self._summed = Summed(gradients.buffer, 1.0)
        self._place = place
        self._ahead = 0
        """How many more updates than steps there were, in a run that began with old parameters"""

    def early(self, bucket: int) -> None:
        """The gradient of a bucket is final, while others are still computed: begin its sum, and take those begun
        before further. Only where one part is all that this worker computes."""
        self._buckets[bucket].start()
        for earlier in self._buckets[:bucket]:
            if earlier.pending is not None:
                earlier.pending.done()

    def start(self, step: int, flush: bool = False) -> None:
        self._step, self._summed = step, self._gradients.finish()
        for bucket in self._buckets:
            if bucket.pending is None:
                bucket.start()
        if self._shards is not None:
            self._shards.push(step, self._summed, flush)

    def wait(self, keys: Callable[[], Keys] | None = None) -> None:
        number = self.updates(self._step)
        for parameters in [bucket.update(number) for bucket in self._buckets]:
            parameters.wait()
        if self._tables is not None:
            self._tables.update(number, self._summed)
        if self._shards is not None:
            self._shards.wait(keys)

    def fetch(self, keys: Keys) -> None:
        if self._shards is not None:
            self._shards.fetch(keys)

    def meet(self) -> None:
        if self._shards is not None:
            self._shards.meet()

    def finish(self) -> None:
        if self._shards is not None:
            self._shards.finish()

    def updates(self, step: int) -> int:
        return step + self._ahead

    def pieces(self) -> Pieces:
        (rank, workers), found = self._place, Pieces()
        for bucket in self._buckets:
            found += bucket.pieces(rank, self._summed.dense.shape[-1])
        if self._tables is not None:
            found += self._tables.pieces(rank, workers)
        return found if self._shards is None else found + self._shards.pieces()

    def keep(self) -> None:
        if self._shards is not None:
            self._shards.keep()

    def restore(self, snapshot: Snapshot) -> None:
        self._ahead = snapshot.position.updates - snapshot.position.steps
        for bucket in self._buckets:
            bucket.restore(snapshot, *self._place, self._summed.dense.shape[-1])
        if self._tables is not None:
            self._tables.restore(snapshot)
        if self._shards is not None:
            self._shards.restore(snapshot)

    def traffic(self) -> Traffic | None:
        return None if self._shards is None else self._shards.traffic()

    def told(self) -> dict[str, Any]:
        return {} if self._shards is None else self._shards.told()


class ServerExchange(Exchange):
    """Gradients are pushed to the shards, which apply the update; fresh parameters are pulled.

    ``slack``: how many steps of any other worker of ``workers`` the parameters may miss, -1 for any number; it may be
    changed between steps. The first ``warmup_steps`` are synchronous. ``row_filter`` keeps rows back.
    """

    def __init__(
        self,
        client: Client,
        gradients: Sum,
        merger: Merger,
        way: str,
        slack: int = 0,
        warmup_steps: int = 0,
        row_filter: RowFilter | None = None,
        workers: int = 1,
    ) -> None:
        self.way = way
        self.slack = slack
        self._client = client
        self._gradients = gradients
        self._merger = merger
        self._warmup_steps = warmup_steps
        self._row_filter = row_filter
        self._workers = workers
        self._step = 0
        self._reached = 0
        self._updates = 0
        self._counts: list[Counts] = []

    def start(self, step: int, flush: bool = False) -> None:
        self.push(step, self._gradients.finish(), flush)

    def push(self, step: int, summed: Summed, flush: bool = False) -> None:
        """:meth:`start` with a given sum."""
        self._step, slack = step, self._slack_of(step)
        self._updates += self._workers if slack else 1
        if self._row_filter is not None:
            summed = self._row_filter.passed(summed, flush)
        self._client.push(step, summed, slack)

    def wait(self, keys: Callable[[], Keys] | None = None) -> None:
        wanted = None if keys is None else self._union(keys())
        self._reached = self._client.pull(self._step, wanted, self._slack_of(self._step))

    def reached(self, step: int) -> int:
        return self._reached

    def go_on(self, step: int, keys: Keys | None) -> None:
        self._updates += step - self._step
        self._step = step
        self._client.go_on(step, None if keys is None else self._union(keys))

    def fetch(self, keys: Keys) -> None:
        if keys[0]:
            self._client.fetch(self._union(keys))
            self._client.meet()

    def meet(self) -> None:
        self._client.meet()

    def finish(self) -> None:
        self._counts = self._client.finish()

    def updates(self, step: int) -> int:
        return self._updates

    def pieces(self) -> Pieces:
        return self._client.pieces()

    def keep(self) -> None:
        self._client.keep()

    def restore(self, snapshot: Snapshot) -> None:
        self._updates = snapshot.position.updates
        self._client.restore(snapshot)

    def traffic(self) -> Traffic | None:
        found, rows = self._client.traffic(), self._row_filter
        return found if rows is None else found._replace(gradient_rows=rows.rows, pushed_rows=rows.pushed)

    def told(self) -> dict[str, Any]:
        shards = [asdict(counts) for counts in self._counts]
        if not any(counts.dropped for counts in self._counts):
            return {"shards": shards}
        dropped = [sum(of_worker) for of_worker in zip(*(counts.dropped for counts in self._counts), strict=True)]
        return {"dropped_pushes": dropped, "skipped_steps": self._counts[0].skipped, "shards": shards}

    def _slack_of(self, step: int) -> int:
        return 0 if step <= self._warmup_steps else self.slack

    def _union(self, keys: Keys) -> dict[str, Array]:
        """The distinct rows of each table."""
        return {name: self._merger.union([part[name] for part in keys]) for name in keys[0]}


def largest_of(ranks: int, rank: int, allreduce: Callable[[Array], object]) -> Callable[[float], float]:
    """The agreement on the largest of one number a worker; ``allreduce`` sums arrays of (ranks,) float64 in place."""
    numbers = np.zeros(ranks, np.float64)

    def agree(mine: float) -> float:
        numbers.fill(0.0)
        numbers[rank] = mine
        allreduce(numbers)
        return float(numbers.max())

    return agree
