"""One shard of the parameters: it adds up or applies what the workers push, and knows what each of them has pushed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hpcps.comm.order import Order, in_turn
from hpcps.comm.transport import Array
from hpcps.errors import CommError
from hpcps.optim import Optimizer
from hpcps.rows import ByTable, Found, Merger
from hpcps.server.delay import Delay, Undelayed
from hpcps.server.messages import UNBOUNDED
from hpcps.server.table import AnyTable
from hpcps.snapshot import Flat, Pieces, Snapshot, in_memory
from hpcps.sums import NOT_FOUND, Decoder, Summed

NO_TABLES: Mapping[str, AnyTable] = {}
ByName = Mapping[str, Found]


class Update(NamedTuple):
    """What was applied to a shard in one go: with the same updates another shard comes to the same parameters."""

    number: int
    dense: Array
    """(n,): the gradient, a sum over samples"""
    rows: ByTable
    """The gradient's rows, in the dtype of the parameters"""
    scale: float
    """What makes a mean of the gradient"""
    clocks: list[int]
    """Of each worker, up to which step the parameters contain all then"""


class Shard:
    """Dense parameters of (n,) and its rows of the tables, with their optimiser state.

    A worker pushes its gradient of step 1, 2, …, each either to be added to the other workers' of that step, or to be
    applied at once. ``clocks[w]``: up to which step of worker w the parameters contain all. Gradients of one step that
    are added are so in ``order``, worker after worker, as soon as it allows, so that the bits do not depend on who came
    first; they are applied when each worker has pushed that step in one way or the other.

    ``delay`` changes gradients that were computed from old parameters. ``on_update`` is told of every update. Rows that
    were not pushed in ``evict_after`` updates are taken away, looked for as often; 0: never.
    """

    waits_for_all = True
    """Whether a step that is added up is applied when all workers have pushed it, and not before"""

    def __init__(
        self,
        params: Array,
        optimizer: Optimizer,
        decoder: Decoder,
        merger: Merger,
        order: Order,
        gradient_scale: float,
        tables: Mapping[str, AnyTable] = NO_TABLES,
        delay: Delay | None = None,
        on_update: Callable[[Update], None] | None = None,
        evict_after: int = 0,
    ) -> None:
        self.params = params
        self.tables = tables
        self.state = optimizer.init(params)
        self.updates = 0
        """How often the parameters have changed"""
        self.duplicates = 0
        self.staleness: Counter[int] = Counter()
        """How many updates by other workers lay between the parameters that a gradient was computed from and its own
        update, of how many pushes"""
        workers = len(order.counts)
        self.clocks = [0] * workers
        self._pushed = [0] * workers
        self._seen = [0] * workers
        self._optimizer = optimizer
        self._decoder = decoder
        self._merger = merger
        self._adds = [order.of_worker(worker) for worker in range(workers)]
        self._is_in_turn = order == in_turn(workers)
        self._gradient_scale = gradient_scale
        self._delay = delay or Undelayed()
        self.on_update = on_update
        self._evict_after = evict_after
        self._steps: dict[int, Step] = {}
        self._is_alone = workers == 1 and len(self._adds[0]) == 1
        self._prepared: tuple[Array, float] | None = None

    def push(self, worker: int, step: int, gradient: Summed, at_once: bool = False) -> bool:
        """Take one worker's gradient. Returns whether it is still needed: it may not be changed until the step's
        gradients have been applied.

        A step that the worker has pushed before is dropped. Raises CommError on a push out of turn, or of another
        number of pieces, or of rows that this shard does not have.
        """
        if self.has_had(worker, step):
            self.duplicates += 1
            return False
        if step != self._pushed[worker] + 1:
            raise CommError(f"worker {worker} pushed step {step} to a shard that has had step {self._pushed[worker]}")
        self._check_pieces(worker, gradient)
        self._pushed[worker] = step
        if self._is_alone and not at_once:
            self._apply_alone(gradient)
            return False
        together = self._steps.get(step)
        if at_once:
            if self._decoder.exact or not self._is_in_turn:
                raise CommError(f"worker {worker} pushed step {step} to be applied at once in a reproducible run")
            self._apply_at_once(worker, gradient)
        if together is None:
            if at_once:
                return False
            together = self._steps[step] = Step()
            for other, pushed in enumerate(self._pushed):
                if other != worker and pushed >= step:  # that worker's was applied at once
                    together.waiting[other] = None
        together.waiting[worker] = None if at_once else gradient
        return self._add_up(step, together)

    def has_had(self, worker: int, step: int) -> bool:
        """Whether a worker has pushed this step: then another push of it is dropped."""
        return step <= self._pushed[worker]

    def lacks(self, workers: Sequence[int]) -> tuple[int, list[int]]:
        """The first step that some of ``workers`` have not pushed, and who they are."""
        step = 1 + min((self._pushed[worker] for worker in workers), default=0)
        return step, [worker for worker in workers if self._pushed[worker] < step]

    def ahead(self, step: int) -> int:
        """How many steps the parameters that contain ``step`` contain beyond it, where shards go on without late
        workers."""
        return 0

    def take_late(self, worker: int) -> bool:
        """Whether the last push of a worker came too late, and was dropped; told once."""
        return False

    @property
    def late(self) -> tuple[list[int], list[int]]:
        """Of each worker, how many pushes were dropped since they came too late, and how many steps it has not
        pushed; empty where no worker can be late."""
        return [], []

    @property
    def is_settled(self) -> bool:
        """Whether no gradient that was pushed is still needed."""
        return not self._steps

    def contains(self, step: int, slack: int) -> bool:
        """Whether the parameters contain all workers' steps up to ``step``, but for the last ``slack``."""
        return slack == UNBOUNDED or min(self.clocks) >= step - slack

    def pull(self, worker: int, keys: Mapping[str, Array]) -> list[Array]:
        """A worker gets the dense parameters, and the rows (k, W) of these keys of each table, copies."""
        self.seen(worker)
        rows = [np.empty((len(own), self.tables[name].width), self.params.dtype) for name, own in keys.items()]
        self.gather(rows, keys)
        return rows

    def gather(self, rows: Sequence[Array], keys: Mapping[str, Array], found: ByName = NOT_FOUND) -> None:
        """Overwrite ``rows``, (k, W) for each table, with the rows of these keys; note where they are in ``found``.
        Raises CommError for rows that are not there."""
        try:
            for out, (name, own) in zip(rows, keys.items(), strict=True):
                self.tables[name].pull(own, out, found.get(name))
        except IndexError as error:
            raise CommError(f"a worker asked for a row that the shard does not have: {error}") from error

    @property
    def layout(self) -> int:
        """Changes when a row of a table gets another slot, or an index another place; never 0 where there are rows."""
        return sum(table.layout for table in self.tables.values())

    def seen(self, worker: int) -> None:
        """A worker gets the parameters as they are."""
        self._seen[worker] = self.updates
        self._delay.seen(worker, self.params)

    def apply(self, update: Update, found: ByName = NOT_FOUND) -> None:
        """Change the parameters. ``found``: where rows of the update are, as far as that is known."""
        if update.number != self.updates + 1:
            raise CommError(f"update {update.number} came to a shard that has had {self.updates}")
        self.updates = update.number
        self._change(update.dense, update.rows, update.scale, found)
        if self.on_update is not None:
            self.on_update(update)

    def follow(self, update: Update) -> None:
        """Change the parameters as another shard has."""
        self.apply(update)
        self.clocks, self._pushed = list(update.clocks), list(update.clocks)

    def pieces(self, start: int, shards: int, shard: int) -> Pieces:
        """What this is of a run's state, as shard ``shard`` of ``shards``, whose dense parameters begin at number
        ``start`` of all: in memory that stays so until the next push. All workers must be at the same step."""
        arrays = {"parameters": self.params} | {f"state.{name}": array for name, array in self.state.items()}
        found = Pieces([Flat(name, start, in_memory(array)) for name, array in arrays.items() if len(array)])
        for name, table in self.tables.items():
            found += table.pieces(name, shards, shard)
        return found

    def restore(self, snapshot: Snapshot, start: int, shards: int, shard: int) -> None:
        """Go on from a snapshot; the dense parameters are there already. Raises CheckpointError."""
        for name, array in self.state.items():
            snapshot.fill_state(array, name, start)
        for name, table in self.tables.items():
            table.restore(snapshot, name, shards, shard)
        self.updates = snapshot.position.updates
        workers = range(len(self.clocks))
        self.clocks, self._pushed = ([snapshot.position.steps for _ in workers] for _ in range(2))
        for worker in workers:
            self.seen(worker)

    def _check_pieces(self, worker: int, gradient: Summed) -> None:
        pieces = 1 if gradient.dense.ndim == 1 else len(gradient.dense)
        if pieces != len(self._adds[worker]):
            raise CommError(f"worker {worker} pushed {pieces} pieces, not {len(self._adds[worker])}")

    def _change(self, dense: Array, rows: ByTable, scale: float, found: ByName) -> None:
        if len(self.params):
            last = self._prepared  # one worker's gradient comes in the same array in every step
            if last is None or dense is not last[0] or scale != last[1]:
                self._prepared = dense, scale
                self._update = self._optimizer.prepare(self.params, self.state, dense, scale)
            self._update(self.updates)
        if rows:
            for name, (keys, values) in rows.items():
                self._update_table(name, keys, values, scale, found.get(name))
        if self._evict_after and self.updates % self._evict_after == 0:
            for table in self.tables.values():
                table.evict(since_step=self.updates - self._evict_after + 1)

    def _apply_alone(self, gradient: Summed) -> None:
        """There is nothing to be added to the gradient."""
        dense = gradient.dense if gradient.dense.ndim == 1 else gradient.dense[0]
        self.staleness[0] += 1
        rows = self._decoded(gradient.rows, gradient.scale)
        self.clocks[0] = self._pushed[0]
        if self.on_update is not None:
            self._apply(dense, rows, self._gradient_scale, gradient.found)
        else:
            self.updates += 1
            self._change(dense, rows, self._gradient_scale, gradient.found)

    def _apply_at_once(self, worker: int, gradient: Summed) -> None:
        age = self.updates - self._seen[worker]
        self.staleness[age] += 1
        dense, rows = gradient.dense.reshape(-1), self._decoded(gradient.rows, gradient.scale)
        dense, rows = self._delay.changed(worker, age, dense, rows, self.params, self._gradient_scale)
        self.clocks[worker] = self._contained(worker)
        self._apply(dense, rows, self._gradient_scale, gradient.found)
        self._seen[worker] += 1  # its own update is no delay

    def _add_up(self, step: int, together: Step) -> bool:
        """Go on with the sum of a step, as far as its order allows. Returns whether it is still to be applied."""
        while together.added in together.waiting:
            gradient = together.waiting.pop(together.added)
            if gradient is not None:
                self._add(together, gradient)
            together.added += 1
        if together.added < len(self._adds):
            return True
        del self._steps[step]
        for worker in together.workers:
            self.clocks[worker] = self._contained(worker)
        if together.sums:
            self._apply_sum(together, self._gradient_scale)
        return False

    def _apply_sum(self, together: Step, scale: float) -> None:
        (dense,) = together.sums
        self.staleness[0] += len(together.workers)
        rows = self._decoded(self._merger.merge(together.rows), together.scale)
        self._apply(dense, rows, scale)

    def _apply(self, dense: Array, rows: ByTable, scale: float, found: ByName = NOT_FOUND) -> None:
        self.apply(Update(self.updates + 1, dense, rows, scale, self.clocks), found)

    def _contained(self, worker: int) -> int:
        """The last step of a worker of which, and of all before, the gradients have been applied."""
        missing = [step for step, together in self._steps.items() if together.holds(worker)]
        return min(missing) - 1 if missing else self._pushed[worker]

    def _add(self, together: Step, gradient: Summed) -> None:
        worker = together.added
        for piece, adds in zip(np.atleast_2d(gradient.dense), self._adds[worker], strict=True):
            together.sums.append(piece)
            for _ in range(len(together.sums) - 1 if self._is_in_turn else adds):
                last = together.sums.pop()
                self._decoder.add_into(together.sums[-1], last)
        if gradient.rows:
            together.rows.append(gradient.rows)
        together.workers.append(worker)
        together.scale = gradient.scale

    def _decoded(self, rows: ByTable, scale: float) -> ByTable:
        if not self._decoder.exact or not rows:
            return rows
        return {name: one._replace(values=self._decoder.values(one.values, scale)) for name, one in rows.items()}

    def _update_table(self, name: str, keys: Array, gradient: Array, scale: float, found: Found | None) -> None:
        try:
            self.tables[name].push(keys, gradient, scale, self.updates, found)
        except IndexError as error:
            raise CommError(f"a worker pushed a row that the shard does not have: {error}") from error


class Step:
    """Gradients of one step that are added up."""

    __slots__ = ("added", "rows", "scale", "sums", "waiting", "workers")

    def __init__(self) -> None:
        self.added = 0
        self.waiting: dict[int, Summed | None] = {}
        self.workers: list[int] = []
        self.sums: list[Array] = []
        self.rows: list[ByTable] = []
        self.scale = 1.0

    def holds(self, worker: int) -> bool:
        """Whether a gradient of this worker is still to be applied."""
        return worker in self.workers or self.waiting.get(worker) is not None
