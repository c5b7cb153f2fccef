"""The loop: batch -> gradient -> exchange -> report. It composes and computes nothing itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpcps.comm import ring
from hpcps.comm.transport import Array, Transport
from hpcps.errors import HpcpsError
from hpcps.exchange import Exchange
from hpcps.pace import Pace
from hpcps.parts import Parts
from hpcps.report import Measures, Reporter
from hpcps.sums import Sum
from hpcps.worker import Score, Worker


@dataclass(frozen=True)
class Plan:
    """How long to train and when to report."""

    epochs: int
    batch: int
    steps_an_epoch: int
    report_every: int


class Trainer:
    """One worker's loop. ``evaluate`` gives the scores of this worker's held-out blocks.

    All workers run the same steps and meet in the exchange, at reports and at evaluations. ``pace`` knows the steps
    taken and their speed.
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
    ) -> None:
        self._workers = workers
        self._worker = worker
        self._gradients = gradients
        self._exchange = exchange
        self._parts = parts
        self._plan = plan
        self._reporter = reporter
        self._evaluate = evaluate
        self.pace = Pace(plan.batch)
        self._reported_steps = 0
        self._told: Array = np.empty(0)

    def run(self) -> Measures:
        """Train to the end; returns what the last epoch measured. Errors name the worker and the step."""
        measures = Measures()
        try:
            for epoch in range(self._plan.epochs):
                measures = self._epoch(epoch)
        except HpcpsError as error:
            rank = f"rank {self._workers.rank}, " if self._workers.size > 1 else ""
            raise type(error)(f"{rank}step {self.pace.steps + 1}: {error}") from error
        return measures

    def _epoch(self, epoch: int) -> Measures:
        self.pace.start()
        self._worker.shuffle(epoch)
        self._worker.load(0)
        self._exchange.fetch(self._worker.keys())
        last = self._plan.steps_an_epoch - 1
        for batch in range(last + 1):
            self._take_step(batch + 1 if batch < last else None)
            if self._plan.report_every and self.pace.steps % self._plan.report_every == 0 and batch < last:
                self.pace.stop()
                self._report(epoch, Measures())
                self.pace.start()
        self.pace.stop()
        return self._report(epoch, self._evaluate())

    def _take_step(self, next_batch: int | None) -> None:
        # Compute: each share is taken up as it is finished.
        for share, rows in enumerate(self._worker.gradients()):
            self._gradients.take(share, rows)

        # Launch the exchange, and load the next samples while it is under way.
        self._exchange.start(self.pace.steps + 1, flush=next_batch is None)
        if next_batch is not None:
            self._worker.load(next_batch)

        # Gather: from here on the parameters are fresh, tables at least where the next batch reads them.
        self._exchange.wait(self._worker.keys if next_batch is not None else None)
        self.pace.step()
        if self.pace.steps == 1:  # its time is kept apart
            self._told = self._with_shards()
        self._reporter.tick(self.pace.steps)

    def _report(self, epoch: int, measures: Measures) -> Measures:
        """Join the losses of all workers, in part order, and hand the report out on rank 0."""
        self._exchange.meet()
        losses = np.zeros(self._parts.total)
        losses[self._parts.owned.start : self._parts.owned.stop] = self._worker.take_losses()
        ring.all_gather(self._workers, losses, self._parts.ranges)
        samples = (self.pace.steps - self._reported_steps) * self._plan.batch
        self._reported_steps = self.pace.steps
        measures = measures.with_training(math.fsum(losses) / samples, self.pace.lap())
        measures = self._with_traffic(measures)
        self._reporter.report(self.pace.steps, epoch + 1, self.pace.train_s, measures)
        return measures

    def _with_traffic(self, measures: Measures) -> Measures:
        """The same, with what the workers have had to do with shards since the last report. A collective."""
        now = self._with_shards()
        if not now.size:
            return measures
        told = np.zeros((self._workers.size, len(now)))
        told[self._workers.rank] = now - self._told
        self._told = now
        ring.all_gather(self._workers, told.reshape(-1), [len(now) * rank for rank in range(self._workers.size + 1)])
        return measures.with_traffic(told)

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
