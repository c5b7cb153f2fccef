"""How fast a run trains: samples over the seconds spent in steps, evaluation and reports left out."""

from __future__ import annotations

import time
from collections.abc import Mapping

_SECONDS = ("train_s", "first_step_s", "lap_s")


class Pace:
    """A stopwatch of steps of ``batch`` samples each. The very first step, in which kernels may be compiled, is kept
    apart in ``first_step_s`` and does not count towards a speed; so is the first of a resumed run."""

    def __init__(self, batch: int) -> None:
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

    def step(self) -> bool:
        """A step is done. Returns whether it was the first that this stopwatch has seen."""
        self.steps += 1
        if not self._is_first:
            self._timed_steps += 1
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
