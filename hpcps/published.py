"""Updates of parameters that other ranks of the node read where they lie, and what they read of gradients.

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
from hpcps.params import Params

Update = Callable[[int], None]
"""Changes the parameters that it was made for, at a step"""

TRY_EVERY = 64
"""Steps between two tries of the way that is not taken."""
KEPT = 3
"""Of the last so many times of each way the median counts."""
WORTH = 1.25
"""So many times slower in place, and parameters are written past the caches, where their readers do not find them, and
gradients, too."""
IN_PLACE, PAST = range(2)


class Kept:
    """What of the gradients of dense parameters this rank reads itself: ``bounds``, by name (2,) int64, of the
    parameter's numbers; all of them at first. What others read is written past the caches if that is faster: see
    kernel ``gemm_tn``."""

    def __init__(self, dense: Params) -> None:
        self.bounds = {name: np.array([0, array.size]) for name, array in dense.items()}
        self._starts = {name: dense.offset(name) for name in dense}
        self._sizes = {name: array.size for name, array in dense.items()}

    def change(self, bucket: slice, kept: slice) -> None:
        """Of the parameters in a bucket this rank reads these alone; both are slices of all dense parameters."""
        for name, bounds in self.bounds.items():
            start, size = self._starts[name], self._sizes[name]
            if bucket.start <= start < bucket.stop:
                bounds[:] = np.clip((kept.start - start, kept.stop - start), 0, size)


class Published:
    """Updates ``shared`` (n,): in place, or a copy of it, which is then written there past the caches; the bits are the
    same. ``make`` gives the update of an array in its place; ``changed`` is told whether the way past the caches has
    become the faster one, or has ceased to be it."""

    def __init__(
        self, shared: Array, make: Callable[[Array], Update], kernels: Any, changed: Callable[[bool], None]
    ) -> None:
        self._changed = changed
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
            faster = PAST if in_place_s > WORTH * past_s else IN_PLACE
            if faster != self._way:
                self._way = faster
                self._changed(faster == PAST)
