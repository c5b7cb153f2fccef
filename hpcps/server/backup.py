"""A shard that does not wait for the slowest workers: backup workers, after Chen, Pan, Monga, Bengio and Jozefowicz,
"Revisiting Distributed Synchronous SGD" (2016).

A step is applied as soon as the gradients of all workers but ``backup`` are there; their mean is over the samples of
these workers alone. What comes later for this step is dropped, and the worker goes on with the step that is current.
Shards decide this each for itself: of one gradient a part may be added and another dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcps.errors import CommError
from hpcps.server.store import Shard, Step
from hpcps.snapshot import Snapshot
from hpcps.sums import Summed


class BackupShard(Shard):
    """A :class:`Shard` that adds the first gradients of each step that come, in worker order: those of all workers but
    ``backup``. ``samples``: of each worker in a batch, by which the mean is weighted. The other arguments are a
    Shard's.

    It has applied all steps up to ``steps``, and takes gradients of the next one alone.
    """

    waits_for_all = False

    def __init__(self, *arguments: Any, samples: Sequence[int], backup: int, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._samples = samples
        self._needed = len(samples) - backup
        self._waiting: dict[int, Summed] = {}
        self._pushes = [0] * len(samples)
        self._dropped = [0] * len(samples)
        self._late: set[int] = set()
        self._begin = 0

    @property
    def steps(self) -> int:
        """The last step that has been applied."""
        return self.clocks[0]

    def push(self, worker: int, step: int, gradient: Summed, at_once: bool = False) -> bool:
        """As a Shard's; but a worker may leave out steps, and a gradient of a step that has been applied is dropped."""
        if self.has_had(worker, step):
            self.duplicates += 1
            return False
        if at_once:
            raise CommError(f"worker {worker} pushed step {step} to be applied at once to a shard with backup workers")
        if step > self.steps + 1:
            raise CommError(f"worker {worker} pushed step {step} to a shard that has had step {self.steps}")
        self._check_pieces(worker, gradient)
        self._pushed[worker] = step
        self._pushes[worker] += 1
        if step <= self.steps:
            self._dropped[worker] += 1
            self._late.add(worker)
            return False
        self._waiting[worker] = gradient
        if len(self._waiting) < self._needed:
            return True
        self._apply_waiting(step)
        return False

    @property
    def is_settled(self) -> bool:
        return not self._waiting

    def lacks(self, workers: Sequence[int]) -> tuple[int, list[int]]:
        step = self.steps + 1
        return step, [worker for worker in workers if self._pushed[worker] < step]

    def ahead(self, step: int) -> int:
        return self.steps - step

    def take_late(self, worker: int) -> bool:
        is_late = worker in self._late
        self._late.discard(worker)
        return is_late

    @property
    def late(self) -> tuple[list[int], list[int]]:
        steps = self.steps - self._begin
        return list(self._dropped), [steps - pushes for pushes in self._pushes]

    def restore(self, snapshot: Snapshot, start: int, shards: int, shard: int) -> None:
        super().restore(snapshot, start, shards, shard)
        self._begin = self.steps

    def _apply_waiting(self, step: int) -> None:
        together, samples = Step(), 0
        for worker, gradient in sorted(self._waiting.items()):
            together.added = worker
            self._add(together, gradient)
            samples += self._samples[worker]
        self._waiting.clear()
        self.clocks = [step] * len(self.clocks)
        self._apply_sum(together, self._gradient_scale * sum(self._samples) / samples)
