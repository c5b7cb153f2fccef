"""Models whose scores are products of factors: factorization machines and matrix factorisation.

Each feature or id has a row of a table: a weight of its own, then its factors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from hpcps import device
from hpcps.config import Model as Options
from hpcps.errors import ConfigError
from hpcps.first import First, FirstRows, draw_seed, whole
from hpcps.models import Array, Arrays, Batch, Facts, Model, Task, loss_of
from hpcps.params import Params, Shapes

DEVIATION = 0.01
"""Of the factors at the start (Rendle 2012, libFM's default is 0.1): small, so that the weights are learned first."""


def make(options: Options, task: Task, facts: Facts, dtype: str, kernels: Any) -> Model:
    """The model for data of these facts. Raises ConfigError where the data are not what it needs."""
    loss = loss_of(options, task)
    if options.kind == "fm":
        return FactorizationMachine(task, loss, options, facts.features, dtype, kernels)
    if not facts.sparse and facts.features != 2:
        raise ConfigError(f"model.kind = {options.kind!r} needs two ids in each sample, but it has {facts.features}")
    users, items = facts.ids or (facts.features, facts.features)
    return MatrixFactorization(task, loss, options, users, items, dtype, kernels)


class _Factors(ABC):
    """What both have in common: rows that begin with a weight of 0 and small random factors."""

    can_predict = True
    tables: tuple[str, ...]
    fields: int

    def __init__(
        self, task: Task, loss: str, options: Options, rows: tuple[int, ...], dtype: str, kernels: Any
    ) -> None:
        self.task = task
        self.loss_name = loss
        self._delta = options.delta
        self._rows = rows  # of each table
        self._width = 1 + options.factors
        self.shapes: Shapes = {"bias": (1,)} | {
            name: (own, self._width) for name, own in zip(self.tables, rows, strict=True)
        }
        self._dtype = np.dtype(dtype)
        self._kernels = kernels
        self._device = device.of(kernels)
        self._unweighted = self._device.empty(0, dtype)  # no sample weights: all count the same

    def first(self, rng: np.random.Generator) -> First:
        """A bias and weights of 0, normal factors."""
        tables = {
            name: FirstRows((count, self._width), draw_seed(rng), DEVIATION, zeros=1)
            for name, count in zip(self.tables, self._rows, strict=True)
        }
        return First(Params.zeros({"bias": (1,)}, self._dtype), tables)

    def init(self, rng: np.random.Generator) -> Params:
        return whole(self.first(rng), self._kernels)

    @abstractmethod
    def scores(self, params: Arrays, samples: Any) -> Array:
        """Raw scores (n,)."""

    def loss(self, params: Arrays, batch: Batch) -> float:
        scores, labels = self.scores(params, batch.samples), self._labels(batch)
        return float(self._kernels.point_loss(scores, labels, self._unweighted, self.loss_name, self._delta))

    def _labels(self, batch: Batch) -> Array:
        return batch.labels if batch.labels.dtype == self._dtype else batch.labels.astype(self._dtype)


class FactorizationMachine(_Factors):
    """bias + w . x + the sum over pairs of features of (v_i . v_j) x_i x_j (Rendle 2010)."""

    tables: tuple[str, ...] = ("features",)
    fields = 1

    def __init__(self, task: Task, loss: str, options: Options, features: int, dtype: str, kernels: Any) -> None:
        super().__init__(task, loss, options, (features,), dtype, kernels)

    def loss_gradient(self, params: Arrays, batch: Batch, gradient_out: Arrays) -> float:
        outs = gradient_out["features"], gradient_out["bias"]
        samples = batch.samples.indptr, batch.samples.columns[0], batch.samples.values
        weights = params["features"], params["bias"]
        kernel = self._kernels.fm_loss_gradient
        return float(
            kernel(*outs, *samples, self._labels(batch), self._unweighted, *weights, self.loss_name, self._delta)
        )

    def scores(self, params: Arrays, samples: Any) -> Array:
        scores = self._device.scratch(len(samples), self._dtype)
        entries = samples.indptr, samples.columns[0], samples.values
        self._kernels.fm_scores(scores, *entries, params["features"], params["bias"])
        return scores


class MatrixFactorization(_Factors):
    """bias + b_user + b_item + p_user . q_item (Koren, Bell and Volinsky 2009)."""

    tables: tuple[str, ...] = ("user", "item")
    fields = 2

    def __init__(
        self, task: Task, loss: str, options: Options, users: int, items: int, dtype: str, kernels: Any
    ) -> None:
        super().__init__(task, loss, options, (users, items), dtype, kernels)

    def loss_gradient(self, params: Arrays, batch: Batch, gradient_out: Arrays) -> float:
        outs = gradient_out["user"], gradient_out["item"], gradient_out["bias"]
        tables = params["user"], params["item"], params["bias"]
        labels = self._labels(batch), self._unweighted
        kernel = self._kernels.mf_loss_gradient
        return float(kernel(*outs, *batch.samples.columns, *labels, *tables, self.loss_name, self._delta))

    def scores(self, params: Arrays, samples: Any) -> Array:
        scores = self._device.scratch(len(samples), self._dtype)
        self._kernels.mf_scores(scores, *samples.columns, params["user"], params["item"], params["bias"])
        return scores
