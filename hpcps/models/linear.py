"""Models whose scores are linear in the samples: linear, logistic and softmax regression, dense and sparse.

Sparse data of many features make the weights a table, of which a batch touches few rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpcps import device
from hpcps.config import Model as Options
from hpcps.first import First, FirstRows, draw_seed, whole
from hpcps.models import Array, Arrays, Batch, Facts, Model, Sparse, Task, loss_of
from hpcps.params import Params, Shapes

Call = tuple[Any, tuple[Any, ...]]
"""A kernel and its arguments"""

DENSE_FEATURES = 256
"""Sparse samples of up to so many features are made dense: then weights are no table."""


def make(options: Options, task: Task, facts: Facts, dtype: str, kernels: Any) -> Model:
    """The model for data of these facts."""
    is_table = facts.by_rows or (facts.sparse and facts.features > DENSE_FEATURES)
    if task == "multiclass":
        return (SparseSoftmax if is_table else Softmax)(facts.features, facts.classes, dtype, kernels)
    kind = SparseLinear if is_table else Linear
    return kind(task, loss_of(options, task), options.delta, facts.features, dtype, kernels)


class _Convex:
    """All parameters begin at zero: the losses are convex."""

    task: Task
    can_predict = True
    tables: tuple[str, ...] = ()
    fields = 1

    def __init__(self, shapes: Shapes, dtype: str, kernels: Any) -> None:
        self.shapes = shapes
        self._dtype = np.dtype(dtype)
        self._kernels = kernels
        self._device = device.of(kernels)
        self._unweighted = self._device.empty(0, dtype)  # no sample weights: all count the same

    def first(self, rng: np.random.Generator) -> First:
        dense = {name: shape for name, shape in self.shapes.items() if name not in self.tables}
        tables = {name: FirstRows(self.shapes[name], draw_seed(rng)) for name in self.tables}
        return First(Params.zeros(dense, self._dtype), tables)

    def init(self, rng: np.random.Generator) -> Params:
        return whole(self.first(rng), self._kernels)


class Linear(_Convex):
    """One score a sample, x . weight + bias, and a loss of score and label."""

    def __init__(self, task: Task, loss: str, delta: float, features: int, dtype: str, kernels: Any) -> None:
        super().__init__({"weight": (features,), "bias": (1,)}, dtype, kernels)
        self.task = task
        self.loss_name = loss
        self._delta = delta

    def loss_gradient(self, params: Arrays, batch: Batch, gradient_out: Arrays) -> float:
        kernel, arguments = self._call(params, batch, gradient_out, _floats(batch.labels, self._dtype))
        return float(kernel(*arguments))

    def prepare(self, params: Arrays, batch: Batch, gradient_out: Arrays) -> Callable[[], float]:
        labels = _floats(batch.labels, self._dtype)
        kernel, arguments = self._call(params, batch, gradient_out, labels)
        return _with_floats(kernel.bind(*arguments), labels, batch)

    def _call(self, params: Arrays, batch: Batch, gradient_out: Arrays, labels: Array) -> Call:
        outs, weights = _pair(gradient_out), _pair(params)
        data = batch.samples, labels, self._unweighted
        return self._kernels.dense_loss_gradient, (*outs, *data, *weights, self.loss_name, self._delta)

    def grain_gradients(self, params: Arrays, batch: Batch, bounds: Array, adds: Array, stack: Array) -> Array:
        return self.prepare_grains(params, batch, bounds, adds, stack)()

    def prepare_grains(
        self, params: Arrays, batch: Batch, bounds: Array, adds: Array, stack: Array
    ) -> Callable[[], Array]:
        losses, labels = self._device.empty(len(adds), np.float64), _floats(batch.labels, self._dtype)
        data = batch.samples, labels, self._unweighted, *_pair(params), *map(self._device.constant, (bounds, adds))
        kernel = self._kernels.dense_grains.bind(stack, losses, *data, self.loss_name, self._delta)
        return _giving(_with_floats(kernel, labels, batch), losses, self._device)

    def scores(self, params: Arrays, samples: Any) -> Array:
        scores = self._device.scratch(len(samples), self._dtype)
        self._kernels.dense_scores(scores, samples, params["weight"], params["bias"])
        return scores

    def loss(self, params: Arrays, batch: Batch) -> float:
        scores, labels = self.scores(params, batch.samples), _floats(batch.labels, self._dtype)
        return float(self._kernels.point_loss(scores, labels, self._unweighted, self.loss_name, self._delta))


class SparseLinear(Linear):
    """The same for sparse samples; the weights are a table."""

    tables = ("weight",)

    def _call(self, params: Arrays, batch: Batch, gradient_out: Arrays, labels: Array) -> Call:
        outs, weights = _pair(gradient_out), _pair(params)
        data = *_rows(batch.samples), labels, self._unweighted
        return self._kernels.csr_loss_gradient, (*outs, *data, *weights, self.loss_name, self._delta)

    def scores(self, params: Arrays, samples: Any) -> Array:
        scores = self._device.scratch(len(samples), self._dtype)
        self._kernels.csr_scores(scores, *_rows(samples), params["weight"], params["bias"])
        return scores


class Softmax(_Convex):
    """Multinomial logistic regression: the cross-entropy of softmax(samples @ weight.T + bias)."""

    task: Task = "multiclass"

    def __init__(self, features: int, classes: int, dtype: str, kernels: Any) -> None:
        super().__init__({"weight": (classes, features), "bias": (classes,)}, dtype, kernels)

    def loss_gradient(self, params: Arrays, batch: Batch, gradient_out: Arrays) -> float:
        kernel, arguments = self._call(params, batch, gradient_out)
        return float(kernel(*arguments))

    def prepare(self, params: Arrays, batch: Batch, gradient_out: Arrays) -> Callable[[], float]:
        kernel, arguments = self._call(params, batch, gradient_out)
        bound: Callable[[], float] = kernel.bind(*arguments)
        return bound

    def _call(self, params: Arrays, batch: Batch, gradient_out: Arrays) -> Call:
        outs, weights = _pair(gradient_out), _pair(params)
        return self._kernels.softmax_loss_gradient, (*outs, batch.samples, batch.labels, self._unweighted, *weights)

    def grain_gradients(self, params: Arrays, batch: Batch, bounds: Array, adds: Array, stack: Array) -> Array:
        return self.prepare_grains(params, batch, bounds, adds, stack)()

    def prepare_grains(
        self, params: Arrays, batch: Batch, bounds: Array, adds: Array, stack: Array
    ) -> Callable[[], Array]:
        losses, tree = self._device.empty(len(adds), np.float64), map(self._device.constant, (bounds, adds))
        data = batch.samples, batch.labels, self._unweighted, *_pair(params), *tree
        return _giving(self._kernels.softmax_grains.bind(stack, losses, *data), losses, self._device)

    def scores(self, params: Arrays, samples: Any) -> Array:
        scores = self._device.scratch((len(samples), len(params["bias"])), self._dtype)
        self._kernels.softmax_scores(scores, samples, params["weight"], params["bias"])
        return scores

    def loss(self, params: Arrays, batch: Batch) -> float:
        scores = self.scores(params, batch.samples)
        return float(self._kernels.softmax_loss(scores, batch.labels, self._unweighted))


class SparseSoftmax(Softmax):
    """The same for sparse samples; the weights are a table with a row of K numbers for each feature."""

    tables = ("weight",)

    def __init__(self, features: int, classes: int, dtype: str, kernels: Any) -> None:
        super().__init__(features, classes, dtype, kernels)
        self.shapes = {"weight": (features, classes), "bias": (classes,)}

    def _call(self, params: Arrays, batch: Batch, gradient_out: Arrays) -> Call:
        outs, weights = _pair(gradient_out), _pair(params)
        data = *_rows(batch.samples), batch.labels, self._unweighted
        return self._kernels.csr_softmax_loss_gradient, (*outs, *data, *weights)

    def scores(self, params: Arrays, samples: Any) -> Array:
        scores = self._device.scratch((len(samples), len(params["bias"])), self._dtype)
        self._kernels.csr_softmax_scores(scores, *_rows(samples), params["weight"], params["bias"])
        return scores


def _pair(arrays: Arrays) -> tuple[Array, Array]:
    return arrays["weight"], arrays["bias"]


def _rows(samples: Sparse) -> tuple[Array, Array, Array]:
    return samples.indptr, samples.columns[0], samples.values


def _with_floats(bound: Callable[[], Any], labels: Array, batch: Batch) -> Callable[[], Any]:
    """``bound``, for which ``labels`` must hold the batch's as floats."""
    if labels is batch.labels:
        return bound

    def call() -> Any:
        labels[:] = batch.labels
        return bound()

    return call


def _giving(bound: Callable[[], Any], losses: Array, here: device.Device) -> Callable[[], Array]:
    """``bound``, which writes losses: a function that gives them, on the host."""

    def call() -> Array:
        bound()
        return here.read(losses)

    return call


def _floats(labels: Array, dtype: np.dtype[Any]) -> Array:
    """Labels as the kernels of one score take them: class numbers 0 and 1 as floats."""
    return labels if labels.dtype == dtype else labels.astype(dtype)
