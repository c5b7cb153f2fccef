"""Models: samples and labels in, loss and gradient out.

Losses and gradients are *sums* over the samples of a batch, never means, so that the parts of a batch add up.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from hpcps.config import Model as Options
from hpcps.errors import ConfigError, ModelError
from hpcps.params import Params

Array = np.ndarray[Any, Any]
Task = Literal["regression", "binary", "multiclass"]


class Batch(NamedTuple):
    """Samples (n, D) in the training dtype; labels (n,), class numbers 0 .. K-1 as int64, or floats (regression)."""

    samples: Array
    labels: Array


class Model(Protocol):
    """What the trainer asks of a model. ``task`` says what the labels are."""

    task: Task
    can_predict: bool

    def init(self, rng: np.random.Generator) -> Params:
        """Fresh parameters, the same for the same state of ``rng``."""

    def loss_gradient(self, params: Params, batch: Batch, gradient_out: Params) -> float:
        """The loss of the batch, summed over its samples; ``gradient_out`` is overwritten with its gradient.

        Called from several threads at a time, each with its own ``batch`` and ``gradient_out``.
        """

    def loss(self, params: Params, batch: Batch) -> float:
        """The loss alone."""

    def scores(self, params: Params, samples: Array) -> Array:
        """Raw scores: (n,) of a regression or binary model (positive: class 1), (n, K) of a multiclass one."""


def built_in_task(options: Options) -> Task | None:
    """What the labels of a built-in model are; None for a user's own."""
    from hpcps.models import mlp
    from hpcps.models.linear import TASKS

    return mlp.task(options) if options.kind == "mlp" else TASKS.get(options.kind)


def make(options: Options, features: int, classes: int, dtype: str, kernels: Any) -> Model:
    """The model that the options name, for samples of ``features`` numbers and labels of ``classes`` classes.

    ``kernels`` is a back end's table. Raises ConfigError for an unknown kind, ModelError for a broken file.
    """
    if ":" in options.kind:
        from hpcps.models.custom import load

        return load(options, dtype)
    if check_kind(options.kind) == "mlp":
        from hpcps.models.mlp import MLP

        return MLP(options, features, classes, dtype, kernels)
    from hpcps.models.linear import MODELS

    return MODELS[options.kind](features, classes, dtype, kernels)


def check_kind(kind: str) -> str:
    """Return ``kind`` if there is such a model. Raises ConfigError with the known ones."""
    from hpcps.models.linear import MODELS

    if ":" not in kind and kind not in (*MODELS, "mlp"):
        known = ", ".join((*MODELS, "mlp"))
        raise ConfigError(f"model.kind = {kind!r} is not known; use one of {known}, or file.py:name for your own")
    return kind


def predict(task: Task, scores: Array) -> Array:
    """Class numbers (n,) int64 of a classifier's scores; a regression's scores as they are."""
    if scores.ndim not in (1, 2) or (task == "regression" and scores.size != len(scores)):
        raise ModelError(f"scores have shape {scores.shape}, expected (n,), or (n, K) of a multiclass model")
    if task == "regression":
        return scores.reshape(len(scores))
    if scores.ndim == 1 or scores.shape[1] == 1:
        return (scores.reshape(len(scores)) > 0).astype(np.int64)
    best: Array = scores.argmax(axis=1)
    return best
