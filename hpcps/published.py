"""Updates of parameters that other ranks of the node read where they lie, and what they read of gradients: in place, or
past the caches, whichever is faster (:mod:`hpcps.faster`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from hpcps import aligned
from hpcps.comm.transport import Array
from hpcps.faster import IN_PLACE, PAST, Faster
from hpcps.params import Params

Update = Callable[[int], None]
"""Changes the parameters that it was made for, at a step"""


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
        self._faster = Faster()
        self._last = IN_PLACE

    def __call__(self, step: int) -> None:
        way = self._faster.way
        if way == PAST and self._last == IN_PLACE:
            np.copyto(self._aside, self._shared)
        began = time.perf_counter()
        if way == IN_PLACE:
            self._in_place(step)
        else:
            self._apart(step)
            self._stream()
        self._last = way
        if self._faster.took(time.perf_counter() - began):
            self._changed(self._faster.best == PAST)
