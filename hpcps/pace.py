"""How fast a run trains: samples over the seconds spent in steps, evaluation and reports left out; and who is slow."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

_SECONDS = ("train_s", "first_step_s", "lap_s")


class Pace:
    """A stopwatch of steps in each of which ``batch`` samples count. The very first step, in which kernels may be
    compiled, is kept apart in ``first_step_s`` and does not count towards a speed; so is the first of a resumed run."""

    def __init__(self, batch: float) -> None:
        self.steps = 0
        self.train_s = 0.0
        self.first_step_s = 0.0
        self._batch = batch
        self._started = 0.0
        self._is_first = True
        self._timed_steps = 0
        self._lap_steps = 0
        self._lap_s = 0.0

    def shown(self) -> dict[str, float]:
        """What the stopwatch shows, between :meth:`stop` and :meth:`start`."""
        told = {"train_s": self.train_s, "first_step_s": self.first_step_s, "lap_s": self._lap_s}
        return {**told, "timed_steps": self._timed_steps, "lap_steps": self._lap_steps}

    def go_on(self, steps: int, shown: Mapping[str, float]) -> None:
        """Go on after ``steps`` with what another stopwatch has shown."""
        self.steps = steps
        self.train_s, self.first_step_s, self._lap_s = (shown.get(name, 0.0) for name in _SECONDS)
        self._timed_steps, self._lap_steps = (int(shown.get(name, 0)) for name in ("timed_steps", "lap_steps"))

    def start(self) -> None:
        """Training goes on from here."""
        self._started = time.perf_counter()

    def step(self, count: int = 1) -> bool:
        """A step is done, or so many, of which others have done the rest. Returns whether it was the first that this
        stopwatch has seen."""
        self.steps += count
        if not self._is_first:
            self._timed_steps += count
            return False
        self._is_first = False
        self.first_step_s = time.perf_counter() - self._started
        self.start()
        return True

    def stop(self) -> None:
        """Something else than training begins here."""
        seconds = time.perf_counter() - self._started
        self.train_s += seconds
        self._lap_s += seconds

    def lap(self) -> float:
        """Samples a second since the last call."""
        speed = self._speed(self._timed_steps - self._lap_steps, self._lap_s)
        self._lap_steps, self._lap_s = self._timed_steps, 0.0
        return speed

    @property
    def samples_per_s(self) -> float:
        """Samples a second of the whole run."""
        return self._speed(self._timed_steps, self.train_s)

    def _speed(self, steps: int, seconds: float) -> float:
        """Of one step alone there is nothing but the first step's own time."""
        return steps * self._batch / max(seconds, 1e-9) if steps else self._batch / max(self.first_step_s, 1e-9)


LEAST_PART, LEAST_S = 0.05, 0.1
"""Of the training time, and in seconds, that a worker must be behind the others to be worth a word: in short times
chance makes workers slow."""


@dataclass(frozen=True)
class Straggler:
    """A worker that computes slower than the others: for ``times`` as long as their median."""

    rank: int
    node: str
    times: float


class Stragglers:
    """Which workers compute for more than ``factor`` times as long as the median of the others; 0: nobody cares.
    ``nodes``: the workers' nodes."""

    def __init__(self, factor: float, nodes: Sequence[str]) -> None:
        self.computed_s = 0.0
        """Of this worker, since the last report; what it waits for others does not count"""
        self._factor = factor
        self._nodes = nodes
        self._all_s = [0.0] * len(nodes)
        self._train_s = 0.0

    @property
    def are_sought(self) -> bool:
        """Whether there is anybody to compare, and anybody cares."""
        return self._factor > 0 and len(self._nodes) > 1

    def since(self, computed_s: Sequence[float], train_s: float) -> tuple[Straggler, ...]:
        """Those since the last call, when all workers had computed for ``computed_s`` seconds since, and the whole
        training has taken ``train_s``."""
        lasted_s, self._train_s = train_s - self._train_s, train_s
        self._all_s = [one + more for one, more in zip(self._all_s, computed_s, strict=True)]
        return slow(computed_s, lasted_s, self._factor, self._nodes)

    def of_all(self) -> tuple[Straggler, ...]:
        """Those of the whole training."""
        return slow(self._all_s, self._train_s, self._factor, self._nodes)


def slow(computed_s: Sequence[float], train_s: float, factor: float, nodes: Sequence[str]) -> tuple[Straggler, ...]:
    """The workers that computed for more than ``factor`` times as long as the median of the others, the slowest first.
    ``computed_s``: of each worker, in ``train_s`` seconds of training.

    >>> slow([1.0, 1.2, 4.4, 0.8], 6.0, 2.0, ["a", "a", "b", "b"])
    (Straggler(rank=2, node='b', times=4.4),)
    """
    found = []
    for rank, mine in enumerate(computed_s):
        others = [*computed_s[:rank], *computed_s[rank + 1 :]]
        typical = max(median(others), 1e-9) if others else mine
        if mine > factor * typical and mine - typical > max(LEAST_S, LEAST_PART * train_s):
            found.append(Straggler(rank, nodes[rank], round(mine / typical, 1)))
    return tuple(sorted(found, key=lambda one: -one.times))
