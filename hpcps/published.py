"""Updates of parameters that other ranks of the node read where they lie.

To write to cache lines that a core far away has read takes some 35 ns a line on a processor of several dies, ten times
what the rest of an update takes; between cores that share a cache it takes nothing. Which of the two it is differs from
rank to rank, and on a virtual machine from second to second. So both ways are timed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from hpcps import aligned
from hpcps.comm.transport import Array

Update = Callable[[int], None]
"""Changes the parameters that it was made for, at a step"""

TRY_EVERY = 64
"""Steps between two tries of the way that is not taken."""
KEPT = 3
"""Of the last so many times of each way the median counts."""
WORTH = 2.0
"""So many times slower in place, and parameters are written past the caches: then their readers find them in memory."""
IN_PLACE, PAST = range(2)


class Published:
    """Updates ``shared`` (n,): in place, or a copy of it, which is then written there past the caches; the bits are the
    same. ``make`` gives the update of an array in its place."""

    def __init__(self, shared: Array, make: Callable[[Array], Update], kernels: Any) -> None:
        self._shared, self._aside = shared, aligned.empty(len(shared), shared.dtype)
        self._in_place, self._apart = make(shared), make(self._aside)
        self._stream = kernels.stream.bind(shared, self._aside)
        self._took_s: tuple[deque[float], ...] = deque(maxlen=KEPT), deque(maxlen=KEPT)
        self._way = self._last = IN_PLACE
        self._steps = 0

    def __call__(self, step: int) -> None:
        is_try = self._steps % TRY_EVERY == TRY_EVERY - 1
        way = 1 - self._way if is_try else self._way
        self._steps += 1
        if way == PAST and self._last == IN_PLACE:
            np.copyto(self._aside, self._shared)
        began = time.perf_counter()
        if way == IN_PLACE:
            self._in_place(step)
        else:
            self._apart(step)
            self._stream()
        self._took_s[way].append(time.perf_counter() - began)
        self._last = way
        if is_try:
            in_place_s, past_s = map(median, self._took_s)
            self._way = PAST if in_place_s > WORTH * past_s else IN_PLACE
