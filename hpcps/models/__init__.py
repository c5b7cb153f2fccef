"""Models: samples and labels in, loss and gradient out.

Losses and gradients are *sums* over the samples of a batch, never means, so that the parts of a batch add up.

A parameter may be a *table*. For a batch the model then gets only the rows whose keys occur in it, renumbered
0 .. k - 1, and returns gradients of those rows alone: the batch's columns are numbers of these rows.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from hpcps.config import Model as Options
from hpcps.errors import ConfigError, ModelError
from hpcps.params import Params, Shapes

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
Task = Literal["regression", "binary", "multiclass"]


class Sparse(NamedTuple):
    """Samples of a model with tables, as compressed sparse rows: sample i owns the entries indptr[i] .. indptr[i+1]-1.

    ``columns`` has one array for each field of the model (see :class:`Model`): numbers of table rows, int32.
    ``values`` (nnz,) in the training dtype; of length 0 where all are 1.
    """

    indptr: Array
    columns: tuple[Array, ...]
    values: Array

    def __len__(self) -> int:
        return len(self.indptr) - 1


class Batch(NamedTuple):
    """Samples and labels (n,): class numbers 0 .. K-1 as int64, or floats (regression).

    Samples are (n, D) in the training dtype, or Sparse for a model with tables; ``keys`` then holds, for each table,
    the distinct keys (k,) int64 of the batch, in the order of their numbers.
    """

    samples: Any
    labels: Array
    keys: Mapping[str, Array] = MappingProxyType({})


@dataclass(frozen=True)
class Facts:
    """What a model needs to know of the data before it is made."""

    features: int
    classes: int
    """0 of a regression"""
    sparse: bool = False
    ids: tuple[int, ...] = ()
    """For each column of dense samples that hold ids: one more than the largest"""
    entries: int = 0
    """Entries of each sample of sparse data, where all have as many; else 0"""
    by_rows: bool = False
    """Whether the weights of a linear model are to be a table also where its features are few, or dense"""


class Model(Protocol):
    """What the trainer asks of a model. ``task`` says what the labels are.

    ``tables`` names the parameters that are tables, the last of its parameters; none for a model of dense samples.
    With ``fields`` = 1 an entry of a sample is a key of all tables. With more, each sample has that many entries,
    and entry i is a key of table i.

    A model may have ``stages``, lists of the names of all its parameters in the order in which their gradients become
    final, from the last parameters to the first. Then its ``loss_gradient`` takes ``ready``, a function that it calls
    with the number of each stage as it is final and its parameters are no longer read.

    A model with tables has a method ``first(rng)``, which returns a :class:`hpcps.first.First`: its dense parameters,
    and how rows begin, by their keys. ``init`` is ``hpcps.first.whole`` of it, and a shard makes rows as their keys
    come up.

    A model without tables may have a method ``prepare``, with the arguments of ``loss_gradient``: it gives a function
    without arguments that does what ``loss_gradient`` does with these arrays, each time with what is then in them.
    Where there are ``stages`` it takes ``ready`` and ``kept``, in this order, too: by parameter which numbers of its
    gradient other ranks do not read, (2,) int64, see kernel ``gemm_tn``; this may change from call to call.

    A model without tables may have a method ``grain_gradients`` (:data:`GrainGradients`). In a reproducible run it is
    called instead of ``loss_gradient``, once for all grains of a thread. It may have ``prepare_grains``, which is to it
    as ``prepare`` is to ``loss_gradient``.
    """

    task: Task
    can_predict: bool
    tables: tuple[str, ...]
    fields: int

    def init(self, rng: np.random.Generator) -> Params:
        """Fresh parameters, the same for the same state of ``rng``."""

    def loss_gradient(self, params: Arrays, batch: Batch, gradient_out: Arrays) -> float:
        """The loss of the batch, summed over its samples; ``gradient_out`` is overwritten with its gradient.

        Called from several threads at a time, each with its own ``batch`` and ``gradient_out``.
        """

    def loss(self, params: Arrays, batch: Batch) -> float:
        """The loss alone."""

    def scores(self, params: Arrays, samples: Any) -> Array:
        """Raw scores: (n,) of a regression or binary model (positive: class 1), (n, K) of a multiclass one."""


GrainGradients = Callable[[Params, Batch, Array, Array, Array], Array]
"""``grain_gradients(params, batch, bounds, adds, stack) -> losses``: the losses of the grains (G,) float64; grain g has
the samples bounds[g] .. bounds[g + 1] - 1 of the batch.

A grain's gradient, in the layout of the flat parameters, is pushed on the ``stack`` (depth, n); then adds[g] times the
two uppermost are replaced by their sum. What is left lies in the first rows. The bits of a grain's gradient may depend
on nothing but its own samples and the parameters. Called from several threads at a time, each with its own batch and
stack."""


@dataclass(frozen=True)
class Kind:
    """A built-in model: the file that makes it, and the tasks that it can have; the first is meant by ``auto``."""

    module: str
    tasks: tuple[Task, ...]


REGRESSION_LOSSES = ("squared", "huber", "poisson")
BINARY_LOSSES = ("logistic", "hinge", "squared_hinge")

KINDS = {
    "linear": Kind("linear", ("regression",)),
    "logistic": Kind("linear", ("binary",)),
    "softmax": Kind("linear", ("multiclass",)),
    "mlp": Kind("mlp", ("multiclass", "binary", "regression")),
    "fm": Kind("factors", ("binary", "regression")),
    "embedding": Kind("embedding", ("binary", "multiclass", "regression")),
    "matrix-factorization": Kind("factors", ("regression", "binary")),
}


def task_of(options: Options) -> Task | None:
    """What the labels of the model are, as far as the options alone tell: None for a user's own without a task.

    Raises ConfigError for an unknown kind, or a task that it cannot have.
    """
    if ":" in options.kind:
        return None if options.task == "auto" else options.task
    kind = KINDS[check_kind(options.kind)]
    if options.task == "auto":
        return kind.tasks[0]
    if options.task not in kind.tasks:
        raise ConfigError(f"model.task = {options.task!r}: {options.kind} can be {' or '.join(kind.tasks)}")
    return options.task


def loss_of(options: Options, task: Task) -> str:
    """The loss of a score: ``model.loss``, or what ``auto`` means. Raises ConfigError if it does not fit the task."""
    fitting = {"regression": REGRESSION_LOSSES, "binary": BINARY_LOSSES, "multiclass": ("softmax",)}[task]
    if options.loss == "auto":
        return fitting[0]
    if options.loss not in fitting:
        raise ConfigError(f"model.loss = {options.loss!r} is not for {task} labels; use {' or '.join(fitting)}")
    return options.loss


def takes_ids(options: Options) -> bool:
    """Whether the features of dense samples are ids, keys of tables."""
    return options.kind == "matrix-factorization"


def is_log(model: Model) -> bool:
    """Whether the scores are logarithms of what is predicted, a count."""
    return getattr(model, "loss_name", "") == "poisson"


def takes_as_many(options: Options) -> bool:
    """Whether all samples must have as many entries."""
    return options.kind == "embedding" and options.combine == "concat"


def make(options: Options, facts: Facts, dtype: str, kernels: Any) -> Model:
    """The model that the options name, for data of these facts.

    ``kernels`` is a back end's table. Raises ConfigError for an unknown kind, ModelError for a broken file.
    """
    if ":" in options.kind:
        from hpcps.models.custom import load

        return load(options, dtype)
    module = importlib.import_module(f"hpcps.models.{KINDS[check_kind(options.kind)].module}")
    model: Model = module.make(options, task_of(options), facts, dtype, kernels)
    return model


def shapes_of(model: Model) -> Shapes | None:
    """The names and shapes of a model's parameters; None where only making them would tell, as of a user's object."""
    shapes: Shapes | None = getattr(model, "shapes", None)
    return shapes


def check_kind(kind: str) -> str:
    """Return ``kind`` if there is such a model. Raises ConfigError with the known ones."""
    if ":" not in kind and kind not in KINDS:
        known = ", ".join(KINDS)
        raise ConfigError(f"model.kind = {kind!r} is not known; use one of {known}, or file.py:name for your own")
    return kind


def predict(model: Model, scores: Array) -> Array:
    """Class numbers (n,) int64 of a classifier's scores; a regression's scores, or e to their power (Poisson)."""
    task = model.task
    if scores.ndim not in (1, 2) or (task == "regression" and scores.size != len(scores)):
        raise ModelError(f"scores have shape {scores.shape}, expected (n,), or (n, K) of a multiclass model")
    if task == "regression":
        flat = scores.reshape(len(scores))
        return np.exp(flat) if is_log(model) else flat
    if scores.ndim == 1 or scores.shape[1] == 1:
        return (scores.reshape(len(scores)) > 0).astype(np.int64)
    best: Array = scores.argmax(axis=1)
    return best
