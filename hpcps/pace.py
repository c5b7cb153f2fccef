"""How fast a run trains: samples over the seconds spent in steps, evaluation and reports left out."""

from __future__ import annotations

import time


class Pace:
    """A stopwatch of steps of ``batch`` samples each. The very first step, in which kernels may be compiled, is kept
    apart in ``first_step_s`` and does not count towards a speed."""

    def __init__(self, batch: int) -> None:
        self.steps = 0
        self.train_s = 0.0
        self.first_step_s = 0.0
        self._batch = batch
        self._started = 0.0
        self._lap_steps = 0
        self._lap_s = 0.0

    def start(self) -> None:
        """Training goes on from here."""
        self._started = time.perf_counter()

    def step(self) -> None:
        """A step is done."""
        self.steps += 1
        if self.steps == 1:
            self.first_step_s = time.perf_counter() - self._started
            self.start()

    def stop(self) -> None:
        """Something else than training begins here."""
        seconds = time.perf_counter() - self._started
        self.train_s += seconds
        self._lap_s += seconds

    def lap(self) -> float:
        """Samples a second since the last call."""
        samples = self._counted(self.steps) - self._counted(self._lap_steps)
        speed = self._speed(samples, self._lap_s)
        self._lap_steps, self._lap_s = self.steps, 0.0
        return speed

    @property
    def samples_per_s(self) -> float:
        """Samples a second of the whole run."""
        return self._speed(self._counted(self.steps), self.train_s)

    def _counted(self, steps: int) -> int:
        return max(0, steps - 1) * self._batch

    def _speed(self, samples: int, seconds: float) -> float:
        """Of one step alone there is nothing but the first step's own time."""
        return samples / max(seconds, 1e-9) if samples else self._batch / max(self.first_step_s, 1e-9)
