"""The loop: batch -> gradient -> exchange -> report. It composes and computes nothing itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from hpcps.comm import ring
from hpcps.comm.transport import Array, Transport
from hpcps.errors import HpcpsError
from hpcps.exchange import Exchange
from hpcps.pace import Pace, Stragglers
from hpcps.parts import Parts
from hpcps.report import Measures, Reporter
from hpcps.snapshot import Position
from hpcps.sums import Sum
from hpcps.worker import Score, Worker

LATE = -2
"""Where in a worker's traffic begins what tells how late it was."""


@dataclass(frozen=True)
class Plan:
    """How long to train and when to report."""

    epochs: int
    batch: int
    steps_an_epoch: int
    report_every: int
    straggler_factor: float = 0.0
    nodes: Sequence[str] = ()
    """Of the workers"""
    backup: int = 0
    """Without how many workers a step goes on"""


class Saver(Protocol):
    """Keeps checkpoints. All workers call it after the same steps, and get the same answers."""

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is wanted after ``step``, or one of the steps before that had none."""

    def look(self, step: int) -> None:
        """Told after every step: find out whether one is wanted after the next. Now and then a collective."""

    def save(self, position: Position) -> bool:
        """Begin to keep the state of the run as it is after a step. Returns whether training is to stop then. A
        collective."""


class NeverSaves:
    """No checkpoints."""

    def is_due(self, step: int) -> bool:
        return False

    def look(self, step: int) -> None:
        """Nothing is wanted."""

    def save(self, position: Position) -> bool:
        return False


class Trainer:
    """One worker's loop. ``evaluate`` gives the scores of this worker's held-out blocks.

    All workers run the same steps and meet in the exchange, at reports and at evaluations. With backup workers one that
    is late leaves out steps, none of those after which all meet. ``pace`` knows the steps taken and their speed.
    ``begin``: where another run of the same plan was left.
    """

    def __init__(
        self,
        workers: Transport,
        worker: Worker,
        gradients: Sum,
        exchange: Exchange,
        parts: Parts,
        plan: Plan,
        reporter: Reporter,
        evaluate: Callable[[], Measures],
        saver: Saver | None = None,
        begin: Position | None = None,
    ) -> None:
        self._workers = workers
        self._worker = worker
        self._gradients = gradients
        self._exchange = exchange
        self._parts = parts
        self._plan = plan
        self._reporter = reporter
        self._evaluate = evaluate
        self.pace = Pace(plan.batch * (1 - plan.backup / workers.size))
        self._reported_steps = 0
        self._skipped = 0
        """Steps since the last report that this worker has left out"""
        self._left_out = 0
        """Samples of steps that were left out since then before a run went on; the first worker's"""
        self._told: Array = np.empty(0)
        self.stragglers = Stragglers(plan.straggler_factor, plan.nodes)
        self._saver = saver or NeverSaves()
        self._is_due = False
        self._is_looked_at = False
        self._begin = begin
        self._cut = tuple(parts.bounds)
        """By which the batches of this epoch are cut"""
        self._last = Measures()
        self.is_stopped = False
        """Whether training was to stop before its end"""
        if begin is not None:
            self._go_on(begin)

    def run(self) -> Measures:
        """Train to the end; returns what was measured last. Errors name the worker and the step."""
        first, done = divmod(self.pace.steps, self._plan.steps_an_epoch)
        try:
            for epoch in range(first, self._plan.epochs):
                self._epoch(epoch, done if epoch == first else 0)
                if self.is_stopped:
                    break
        except HpcpsError as error:
            rank = f"rank {self._workers.rank}, " if self._workers.size > 1 else ""
            raise type(error)(f"{rank}step {self.pace.steps + 1}: {error}") from error
        return self._last

    def _epoch(self, epoch: int, done: int) -> None:
        """Train what is left of an epoch of which so many batches are done."""
        self.pace.start()
        if done == 0:
            self._cut = tuple(self._parts.bounds)
        self._worker.shuffle(epoch, done)
        self._worker.load(done)
        self._exchange.fetch(self._worker.keys())
        before, count = epoch * self._plan.steps_an_epoch, self._plan.steps_an_epoch
        while self.pace.steps < before + count:
            self._take_step(before, before + count)
            if self.pace.steps == before + count:
                break
            is_reported = self._plan.report_every and self.pace.steps % self._plan.report_every == 0
            if is_reported or self._is_due:
                self.pace.stop()
                if is_reported:
                    self._report(epoch, Measures())
                self._save()
                if self.is_stopped:
                    return
                self.pace.start()
        self.pace.stop()
        self._report(epoch, self._evaluate())
        self._save()

    def _take_step(self, before: int, last: int) -> None:
        """One step, and those that others take meanwhile without this worker, of an epoch of the steps behind
        ``before`` up to ``last``."""
        # Compute: each share is taken up as it is finished.
        began = time.perf_counter()
        for share, rows in enumerate(self._worker.gradients()):
            self._gradients.take(share, rows)
        self.stragglers.computed_s += time.perf_counter() - began

        # Launch the exchange, and load the next samples while it is under way.
        step = self.pace.steps + 1
        self._look_ahead(step, last)
        self._exchange.start(step, flush=self._is_looked_at)
        if step < last:
            self._worker.load(step - before)

        # Gather: from here on the parameters are fresh, tables at least where the next batch reads them.
        self._exchange.wait(None if self._is_looked_at else self._worker.keys)
        reached = self._exchange.reached(step)
        if reached > step:
            self._skip(step, reached, before, last)
        if self.pace.step(reached - self.pace.steps):  # its time is kept apart
            self._told = self._with_shards()
            self._told[LATE:] = 0  # but not who was late
            self.stragglers.computed_s = 0.0
        self._reporter.tick(reached)
        self._saver.look(reached)

    def _look_ahead(self, step: int, last: int) -> None:
        """Find out whether there is to be a checkpoint after ``step``."""
        is_last = step == last
        self._is_due = self._saver.is_due(step) and (is_last or self._exchange.is_common(step))
        self._is_looked_at = is_last or self._is_due

    def _skip(self, step: int, reached: int, before: int, last: int) -> None:
        """Go on after ``reached``, to which others have come without this worker. Nobody is beyond a step after which
        all meet, so none of those is left out."""
        self._skipped += reached - step
        self._look_ahead(reached, last)
        if reached < last:
            self._worker.load(reached - before)
        self._exchange.go_on(reached, None if self._is_looked_at else self._worker.keys())

    def _save(self) -> None:
        """Keep a checkpoint if it is due; and make ready what the next batch reads, which the last step did not."""
        if not self._is_due:
            return
        self._exchange.meet()
        is_over = self.pace.steps == self._plan.epochs * self._plan.steps_an_epoch
        self.is_stopped = self._saver.save(self._position()) and not is_over
        if not self.is_stopped and self.pace.steps % self._plan.steps_an_epoch:
            self._exchange.fetch(self._worker.keys())

    def _position(self) -> Position:
        """How far the run has come. A collective."""
        steps = self.pace.steps
        return Position(
            steps=steps,
            updates=self._exchange.updates(steps),
            workers=self._workers.size,
            losses=tuple(self._join(self._worker.losses).tolist()),
            cut=self._cut,
            reported_steps=self._reported_steps,
            clock=self.pace.shown(),
            measures=self._last.said(),
            resumed=() if self._begin is None else (*self._begin.resumed, self._begin.steps),
            left_out=self._samples_left_out(),
        )

    def _go_on(self, begin: Position) -> None:
        """Go on where another run was left; its losses are those of the same parts, or else of the first one."""
        self.pace.go_on(begin.steps, begin.clock)
        self._cut = begin.cut or self._cut
        self._reported_steps = begin.reported_steps
        self._last = Measures.as_said(begin.measures)
        self._left_out = begin.left_out if self._workers.rank == 0 else 0
        losses = np.array(begin.losses)
        if len(losses) != self._parts.total:
            losses = np.zeros(self._parts.total)
            losses[0] = math.fsum(begin.losses)
        self._worker.go_on(losses[self._parts.owned.start : self._parts.owned.stop])

    def _join(self, own: Array) -> Array:
        """One number a part, from all workers. A collective."""
        joined = np.zeros(self._parts.total)
        joined[self._parts.owned.start : self._parts.owned.stop] = own
        ring.all_gather(self._workers, joined, self._parts.ranges)
        return joined

    def _report(self, epoch: int, measures: Measures) -> None:
        """Join the losses of all workers, in part order, and hand the report out on rank 0."""
        self._exchange.meet()
        losses = self._join(self._worker.take_losses())
        samples = (self.pace.steps - self._reported_steps) * self._plan.batch - self._samples_left_out()
        measures = measures.with_training(math.fsum(losses) / samples, self.pace.lap())
        measures = self._with_stragglers(self._with_traffic(measures))
        self._reported_steps, self._skipped, self._left_out = self.pace.steps, 0, 0
        self._last = measures
        self._reporter.report(self.pace.steps, epoch + 1, self.pace.train_s, measures)

    def _with_stragglers(self, measures: Measures) -> Measures:
        """The same, with the workers that have been slow since the last report. A collective."""
        if not self.stragglers.are_sought:
            return measures
        steps = self.pace.steps - self._reported_steps
        mine_s, self.stragglers.computed_s = self.stragglers.computed_s, 0.0
        computed_s = self._of_all(mine_s * steps / max(1, steps - self._skipped))  # as if all had taken all steps
        return replace(measures, stragglers=self.stragglers.since(computed_s.tolist(), self.pace.train_s) or None)

    def _with_traffic(self, measures: Measures) -> Measures:
        """The same, with what the workers have had to do with shards since the last report. A collective."""
        now = self._with_shards()
        if not now.size:
            return measures
        told = np.zeros((self._workers.size, len(now)))
        told[self._workers.rank] = now - self._told
        self._told = now
        ring.all_gather(self._workers, told.reshape(-1), [len(now) * rank for rank in range(self._workers.size + 1)])
        return measures.with_traffic(told, self._plan.backup > 0)

    def _samples_left_out(self) -> int:
        """How many samples of the steps since the last report no worker has looked at. A collective."""
        if not self._plan.backup and (self._begin is None or not self._begin.left_out):
            return 0
        own = self._parts.by_worker[self._workers.rank]
        return int(self._of_all(self._skipped * own + self._left_out).sum())

    def _of_all(self, mine: float) -> Array:
        """One number a worker, float64. A collective."""
        numbers = np.zeros(self._workers.size)
        numbers[self._workers.rank] = mine
        ring.all_gather(self._workers, numbers, list(range(self._workers.size + 1)))
        return numbers

    def _with_shards(self) -> Array:
        """Seconds of training, and this worker's traffic so far; nothing where there are no shards."""
        traffic = self._exchange.traffic()
        return np.empty(0) if traffic is None else np.array([self.pace.train_s, *traffic])


def join_scores(workers: Transport, mine: list[Score], ranges: list[int]) -> Score:
    """The sum of all workers' block scores, in block order, the same bits on every worker.

    ``mine``: one score a block of this worker; worker w has the blocks ``ranges[w] .. ranges[w + 1] - 1``.
    """
    joined: Array = np.zeros(2 * ranges[-1])
    low = ranges[workers.rank]
    for number, score in enumerate(mine, low):
        joined[2 * number : 2 * number + 2] = score.loss, score.quality
    ring.all_gather(workers, joined, [2 * bound for bound in ranges])
    return Score(math.fsum(joined[0::2]), math.fsum(joined[1::2]))
