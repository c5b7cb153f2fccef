"""The loop: batch -> gradient -> exchange -> report. It composes and computes nothing itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpcps.comm import ring
from hpcps.comm.transport import Array, Transport
from hpcps.errors import HpcpsError
from hpcps.exchange import Exchange
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

    All workers run the same steps and meet in the exchange, at reports and at evaluations.
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
        self._step = 0
        self._reported = 0
        self._train_s = 0.0
        self._reported_s = 0.0

    def run(self) -> Measures:
        """Train to the end; returns what the last epoch measured. Errors name the worker and the step."""
        measures = Measures()
        try:
            for epoch in range(self._plan.epochs):
                measures = self._epoch(epoch)
            self._exchange.finish()
        except HpcpsError as error:
            place = f"rank {self._workers.rank}, step {self._step + 1}" if self._workers.size > 1 else ""
            raise type(error)(f"{place or f'step {self._step + 1}'}: {error}") from error
        return measures

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self._step

    @property
    def train_s(self) -> float:
        """Seconds spent in training steps, evaluation and reports excluded."""
        return self._train_s

    def _epoch(self, epoch: int) -> Measures:
        started = time.perf_counter()
        self._worker.shuffle(epoch)
        self._worker.load(0)
        last = self._plan.steps_an_epoch - 1
        for batch in range(last + 1):
            self._take_step(batch + 1 if batch < last else None)
            if self._plan.report_every and self._step % self._plan.report_every == 0 and batch < last:
                started = self._pause(started)
                self._report(epoch, Measures())
                started = time.perf_counter()
        self._pause(started)
        measures = self._evaluate()
        return self._report(epoch, measures)

    def _take_step(self, next_batch: int | None) -> None:
        # Compute: each part is taken up as it is finished.
        for part in self._worker.gradients():
            self._gradients.take(part)

        # Launch the exchange, and load the next samples while it is under way.
        waiting = self._exchange.start(self._step + 1)
        if next_batch is not None:
            self._worker.load(next_batch)

        # Gather: from here on the parameters are fresh.
        waiting.wait()
        self._step += 1

    def _pause(self, started: float) -> float:
        now = time.perf_counter()
        self._train_s += now - started
        return now

    def _report(self, epoch: int, measures: Measures) -> Measures:
        """Join the losses of all workers, in part order, and hand the report out on rank 0."""
        losses = np.zeros(self._parts.total)
        losses[self._parts.owned.start : self._parts.owned.stop] = self._worker.take_losses()
        ring.all_gather(self._workers, losses, self._parts.ranges)
        samples = (self._step - self._reported) * self._plan.batch
        seconds = self._train_s - self._reported_s
        measures = measures.with_training(math.fsum(losses) / samples, samples / max(seconds, 1e-9))
        self._reported, self._reported_s = self._step, self._train_s
        self._reporter.report(self._step, epoch + 1, self._train_s, measures)
        return measures


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
