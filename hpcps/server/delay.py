"""What is done about gradients that were computed from old parameters.

The *age* of a gradient is the number of updates by other workers between the parameters that it was computed from and
its own update.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from hpcps.comm.transport import Array
from hpcps.rows import ByTable


class Delay(Protocol):
    """Changes gradients by their age."""

    def seen(self, worker: int, params: Array) -> None:
        """``worker`` gets these dense parameters (n,)."""

    def changed(
        self, worker: int, age: int, dense: Array, rows: ByTable, params: Array, gradient_scale: float
    ) -> tuple[Array, ByTable]:
        """The gradient, (n,) and rows, to be applied in the place of this one, to ``params``. May be written in place.
        ``gradient_scale`` times it is a mean over samples."""


class Undelayed:
    """Gradients as they are."""

    def seen(self, worker: int, params: Array) -> None:
        """Nothing is kept."""

    def changed(
        self, worker: int, age: int, dense: Array, rows: ByTable, params: Array, gradient_scale: float
    ) -> tuple[Array, ByTable]:
        return dense, rows


class Scaled(Undelayed):
    """Gradients divided by 1 + age (Zhang, Gupta, Lian and Liu 2016, "Staleness-aware Async-SGD")."""

    def changed(
        self, worker: int, age: int, dense: Array, rows: ByTable, params: Array, gradient_scale: float
    ) -> tuple[Array, ByTable]:
        if age == 0:
            return dense, rows
        factor = dense.dtype.type(1.0 / (1 + age))
        return dense * factor, {name: one._replace(values=one.values * factor) for name, one in rows.items()}


class Compensated(Undelayed):
    """The mean gradient g at w, the worker's parameters, brought to the shard's v: g + c * g * g * (v - w), elementwise
    (Zheng et al. 2017, "Asynchronous Stochastic Gradient Descent with Delay Compensation"). Keeps a copy of the
    parameters for each worker. For dense parameters alone.
    """

    def __init__(self, workers: int, strength: float) -> None:
        self._strength = strength
        self._copies: list[Array | None] = [None] * workers

    def seen(self, worker: int, params: Array) -> None:
        copy = self._copies[worker]
        if copy is None:
            self._copies[worker] = params.copy()
        else:
            copy[:] = params

    def changed(
        self, worker: int, age: int, dense: Array, rows: ByTable, params: Array, gradient_scale: float
    ) -> tuple[Array, ByTable]:
        copy = self._copies[worker]
        if age == 0 or copy is None:
            return dense, rows
        change = np.subtract(params, copy)
        change *= dense
        change *= dense
        change *= params.dtype.type(self._strength * gradient_scale)
        change += dense
        return change, rows
