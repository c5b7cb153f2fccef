"""Two ways to write what another core reads: in place, or past the caches; which of them is the faster one now.

To write to cache lines that a core far away has read takes some 35 ns a line on a processor of several dies, ten times
what else there is to do; between cores that share a cache it takes nothing, and the reader finds them there. Which of
the two it is differs from rank to rank, and on a virtual machine from second to second. So both ways are timed.
"""

from __future__ import annotations

from collections import deque
from statistics import median

IN_PLACE, PAST = range(2)
TRY_EVERY = 64
"""Calls between two tries of the way that is not taken."""
KEPT = 3
"""Of the last so many times of each way the median counts."""
WORTH = 1.25
"""So many times slower in place, and what others read is written past the caches, where they do not find it."""


class Faster:
    """What is done again and again, in one of two ways: :attr:`way` is that of the next call."""

    def __init__(self) -> None:
        self.way = self.best = IN_PLACE
        self._took: tuple[deque[float], ...] = deque(maxlen=KEPT), deque(maxlen=KEPT)
        self._calls = 0

    def took(self, cost: float) -> bool:
        """The call has cost so much, in any unit. Returns whether the other way is the best one from now on."""
        self._took[self.way].append(cost)
        self._calls += 1
        before = self.best
        if self.way != before:
            in_place, past = map(median, self._took)
            self.best = PAST if in_place > WORTH * past else IN_PLACE
        self.way = 1 - self.best if self._calls % TRY_EVERY == TRY_EVERY - 1 else self.best
        return self.best != before
