"""Models whose scores are linear in the samples: linear regression, logistic regression, softmax regression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpcps.models import Array, Batch, Model, Task
from hpcps.params import Params, Shapes


class _Linear:
    """One score a sample: x . weight + bias. All parameters begin at zero: the losses are convex."""

    task: Task
    can_predict = True

    def __init__(self, features: int, classes: int, dtype: str, kernels: Any) -> None:
        self._kernels = kernels
        self._dtype = np.dtype(dtype)
        self._shapes: Shapes = {"weight": (features,), "bias": (1,)}

    def init(self, rng: np.random.Generator) -> Params:
        return Params.zeros(self._shapes, self._dtype)

    def scores(self, params: Params, samples: Array) -> Array:
        scores = np.empty(len(samples), self._dtype)
        self._kernels.linear_scores(scores, samples, params["weight"], params["bias"])
        return scores


class Regression(_Linear):
    """Linear regression with half the squared error, (score - label)**2 / 2."""

    task: Task = "regression"

    def loss_gradient(self, params: Params, batch: Batch, gradient_out: Params) -> float:
        kernel = self._kernels.linear_loss_gradient
        return float(kernel(gradient_out["weight"], gradient_out["bias"], *batch, params["weight"], params["bias"]))

    def loss(self, params: Params, batch: Batch) -> float:
        return float(self._kernels.linear_loss(self.scores(params, batch.samples), batch.labels))


class Logistic(_Linear):
    """Binary logistic regression: log(1 + exp(-score)) for class 1, log(1 + exp(score)) for class 0."""

    task: Task = "binary"

    def loss_gradient(self, params: Params, batch: Batch, gradient_out: Params) -> float:
        kernel = self._kernels.logistic_loss_gradient
        return float(kernel(gradient_out["weight"], gradient_out["bias"], *batch, params["weight"], params["bias"]))

    def loss(self, params: Params, batch: Batch) -> float:
        return float(self._kernels.logistic_loss(self.scores(params, batch.samples), batch.labels))


class Softmax:
    """Multinomial logistic regression: the cross-entropy of softmax(samples @ weight.T + bias)."""

    task: Task = "multiclass"
    can_predict = True

    def __init__(self, features: int, classes: int, dtype: str, kernels: Any) -> None:
        self._kernels = kernels
        self._dtype = np.dtype(dtype)
        self._shapes: Shapes = {"weight": (classes, features), "bias": (classes,)}

    def init(self, rng: np.random.Generator) -> Params:
        return Params.zeros(self._shapes, self._dtype)

    def loss_gradient(self, params: Params, batch: Batch, gradient_out: Params) -> float:
        kernel = self._kernels.softmax_loss_gradient
        return float(kernel(gradient_out["weight"], gradient_out["bias"], *batch, params["weight"], params["bias"]))

    def scores(self, params: Params, samples: Array) -> Array:
        scores = np.empty((len(samples), len(params["bias"])), self._dtype)
        self._kernels.softmax_scores(scores, samples, params["weight"], params["bias"])
        return scores

    def loss(self, params: Params, batch: Batch) -> float:
        return float(self._kernels.softmax_loss(self.scores(params, batch.samples), batch.labels))


MODELS: dict[str, Callable[[int, int, str, Any], Model]] = {
    "linear": Regression,
    "logistic": Logistic,
    "softmax": Softmax,
}
TASKS: dict[str, Task] = {"linear": "regression", "logistic": "binary", "softmax": "multiclass"}
