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
    loss_name: str

    def __init__(self, features: int, classes: int, dtype: str, kernels: Any) -> None:
        self._kernels = kernels
        self._dtype = np.dtype(dtype)
        self._unweighted = np.empty(0, self._dtype)
        self._shapes: Shapes = {"weight": (features,), "bias": (1,)}

    def init(self, rng: np.random.Generator) -> Params:
        return Params.zeros(self._shapes, self._dtype)

    def scores(self, params: Params, samples: Array) -> Array:
        scores = np.empty(len(samples), self._dtype)
        self._kernels.dense_scores(scores, samples, params["weight"], params["bias"])
        return scores

    def loss_gradient(self, params: Params, batch: Batch, gradient_out: Params) -> float:
        labels = batch.labels.astype(self._dtype, copy=False)
        loss: float = self._kernels.dense_loss_gradient(
            gradient_out["weight"],
            gradient_out["bias"],
            batch.samples,
            labels,
            self._unweighted,
            params["weight"],
            params["bias"],
            self.loss_name,
            1.0,
        )
        return loss

    def loss(self, params: Params, batch: Batch) -> float:
        scores, labels = self.scores(params, batch.samples), batch.labels.astype(self._dtype, copy=False)
        return float(self._kernels.point_loss(scores, labels, self._unweighted, self.loss_name, 1.0))


class Regression(_Linear):
    """Linear regression with half the squared error, (score - label)**2 / 2."""

    task: Task = "regression"
    loss_name = "squared"


class Logistic(_Linear):
    """Binary logistic regression: log(1 + exp(-score)) for class 1, log(1 + exp(score)) for class 0."""

    task: Task = "binary"
    loss_name = "logistic"


class Softmax:
    """Multinomial logistic regression: the cross-entropy of softmax(samples @ weight.T + bias)."""

    task: Task = "multiclass"
    can_predict = True

    def __init__(self, features: int, classes: int, dtype: str, kernels: Any) -> None:
        self._kernels = kernels
        self._dtype = np.dtype(dtype)
        self._unweighted = np.empty(0, self._dtype)
        self._shapes: Shapes = {"weight": (classes, features), "bias": (classes,)}

    def init(self, rng: np.random.Generator) -> Params:
        return Params.zeros(self._shapes, self._dtype)

    def loss_gradient(self, params: Params, batch: Batch, gradient_out: Params) -> float:
        loss: float = self._kernels.softmax_loss_gradient(
            gradient_out["weight"],
            gradient_out["bias"],
            *batch,
            self._unweighted,
            params["weight"],
            params["bias"],
        )
        return loss

    def scores(self, params: Params, samples: Array) -> Array:
        scores = np.empty((len(samples), len(params["bias"])), self._dtype)
        self._kernels.softmax_scores(scores, samples, params["weight"], params["bias"])
        return scores

    def loss(self, params: Params, batch: Batch) -> float:
        return float(self._kernels.softmax_loss(self.scores(params, batch.samples), batch.labels, self._unweighted))


MODELS: dict[str, Callable[[int, int, str, Any], Model]] = {
    "linear": Regression,
    "logistic": Logistic,
    "softmax": Softmax,
}
TASKS: dict[str, Task] = {"linear": "regression", "logistic": "binary", "softmax": "multiclass"}
