"""After which steps a checkpoint is made. What only one rank knows, its clock or a signal, is told to the others at
steps on which all have agreed, so far apart that it costs next to nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from hpcps.comm import ring
from hpcps.comm.transport import Transport

LOOK_S = 0.5
"""Seconds between two looks at what the other workers know."""
LOOK_SLACK_S = 5.0
"""The same where workers may run ahead of each other, which each look puts an end to."""
GROWTH = 4
"""So many times more steps than the last time may lie before the next look."""


class Stop(Protocol):
    """Whether this process has been told to stop."""

    signal: int
    """By which signal; 0: by none"""


class When:
    """Every ``every_steps`` steps, every ``every_s`` seconds by the first worker's clock (0: never), after the last of
    ``total`` if there are any at all, and when a process is told to stop. ``meet``: brings the workers together before
    a collective."""

    def __init__(
        self,
        workers: Transport,
        meet: Callable[[], None],
        stop: Stop | None,
        every_steps: int,
        every_s: float,
        total: int,
        look_s: float = LOOK_S,
    ) -> None:
        self._workers = workers
        self._meet = meet
        self._stop = stop
        self._every_steps = every_steps
        self._every_s = every_s
        self._total = total
        self._look_s = look_s
        self._looks = stop is not None or every_s > 0
        self._is_wanted = False
        self._next_look = 0
        self._last_look = 0
        self._looked_s = self._saved_s = time.monotonic()
        self.signal = 0
        """By which signal the run is to stop after the next checkpoint"""

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is wanted after ``step``."""
        is_last = step == self._total and (self._every_steps > 0 or self._every_s > 0)
        self._is_wanted |= is_last or (self._every_steps > 0 and step % self._every_steps == 0)
        return self._is_wanted

    def saved(self) -> None:
        """One has been made."""
        self._is_wanted = False
        self._saved_s = time.monotonic()

    def look(self, step: int) -> None:
        """Told after every step."""
        if not self._looks or step < self._next_look or step == self._total:
            return
        now = time.monotonic()
        is_time = self._every_s > 0 and now - self._saved_s >= self._every_s
        signal = 0 if self._stop is None else self._stop.signal
        if self._workers.size > 1:
            signal, is_time, step_s = self._agree(
                signal, is_time, (now - self._looked_s) / max(1, step - self._last_look)
            )
            most = GROWTH * max(1, step - self._last_look) if self._last_look else 1
            self._next_look = step + max(1, min(most, int(self._look_s / max(step_s, 1e-9))))
            self._last_look, self._looked_s = step, time.monotonic()
        self.signal = self.signal or signal
        self._is_wanted |= is_time or self.signal > 0

    def _agree(self, signal: int, is_time: bool, step_s: float) -> tuple[int, bool, float]:
        """Any worker's signal, the first one's clock, the slowest one's steps. A collective."""
        self._meet()
        told = np.zeros((self._workers.size, 3))
        told[self._workers.rank] = signal, is_time, step_s
        ring.all_gather(self._workers, told.reshape(-1), [3 * rank for rank in range(self._workers.size + 1)])
        return int(told[:, 0].max()), bool(told[0, 1]), float(told[:, 2].max())
