"""The user's own training function: ``model.kind = "file.py:name"``.

``name`` is one of

- a function ``f(params, samples, labels) -> (loss, gradients)``, with the parameters' names and shapes under
  ``[model.parameters]``; ``params`` maps names to arrays, ``gradients`` maps the same names to arrays of the same
  shapes;
- an object, or a class to be called without arguments, with ``init(rng) -> {name: array}`` and
  ``loss_gradient(params, batch, gradient_out) -> loss``, which overwrites the arrays of ``gradient_out``. It may have
  ``scores(params, samples)``, so that it can predict, and ``task``.

Loss and gradients are sums over the samples given. What the function raises or gets wrong is a
:class:`~hpcps.errors.ModelError` that names the file, its line, and the parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast, get_args

import numpy as np

from hpcps.config import Model as Options
from hpcps.errors import ModelError
from hpcps.models import Array, Batch, Model, Task
from hpcps.own import Guard, load_name
from hpcps.params import Params, Shapes


def load(options: Options, dtype: str) -> Model:
    """The model of ``options.kind``. Raises ModelError naming the file if it cannot be loaded."""
    named = load_name(options.kind, "model.kind")
    task: Task | None = None if options.task == "auto" else options.task
    if isinstance(named, type) or hasattr(named, "loss_gradient"):
        instance = Guard(options.kind).call(named) if isinstance(named, type) else named
        return _ObjectModel(options.kind, instance, task, dtype)
    if not callable(named):
        raise ModelError(f"{options.kind}: is neither a function nor an object with init and loss_gradient")
    if not options.parameters:
        raise ModelError(f"{options.kind}: a function needs its parameters' shapes in [model.parameters]")
    shapes = {name: tuple(shape) for name, shape in options.parameters.items()}
    scores = load_name(options.scores, "model.scores") if options.scores else None
    return _FunctionModel(options.kind, named, scores, shapes, task or "multiclass", dtype)


class _FunctionModel:
    tables: tuple[str, ...] = ()
    fields = 1

    def __init__(
        self,
        kind: str,
        function: Callable[..., Any],
        scores: Callable[..., Any] | None,
        shapes: Shapes,
        task: Task,
        dtype: str,
    ) -> None:
        self.task = task
        self.can_predict = scores is not None
        self._guard = Guard(kind)
        self._function = function
        self._scores = scores
        self._shapes = shapes
        self._dtype = np.dtype(dtype)

    def init(self, rng: np.random.Generator) -> Params:
        """Vectors are zero, matrices uniform within sqrt(6 / (rows + columns)) (Glorot and Bengio 2010)."""
        params = Params.zeros(self._shapes, self._dtype)
        for name in params:
            shape = params.shapes[name]
            if len(shape) > 1:
                limit = math.sqrt(6 / (shape[0] + math.prod(shape[1:])))
                params[name][...] = rng.uniform(-limit, limit, shape)
        return params

    def loss_gradient(self, params: Any, batch: Batch, gradient_out: Any) -> float:
        loss, gradients = self._call(params, batch)
        for name, out in gradient_out.items():
            out[...] = self._guard.array(f"gradient {name!r}", gradients[name], out.shape)
        return loss

    def loss(self, params: Any, batch: Batch) -> float:
        return self._call(params, batch)[0]

    def scores(self, params: Any, samples: Array) -> Array:
        if self._scores is None:
            raise ModelError(f"{self._guard.kind}: cannot predict; name a function of its file in model.scores")
        return np.asarray(self._guard.call(self._scores, params.read_only(), samples))

    def _call(self, params: Params, batch: Batch) -> tuple[float, Mapping[str, Any]]:
        returned = self._guard.call(self._function, params.read_only(), batch.samples, batch.labels)
        kind = self._guard.kind
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ModelError(f"{kind}: returned {type(returned).__name__}, expected (loss, gradients)")
        loss, gradients = returned
        if not isinstance(gradients, Mapping):
            raise ModelError(f"{kind}: gradients are {type(gradients).__name__}, expected a dict by parameter name")
        if set(gradients) != set(self._shapes):
            names = ", ".join(map(str, gradients))
            raise ModelError(f"{kind}: gradients are of {names or 'nothing'}, expected {', '.join(self._shapes)}")
        return self._guard.loss(loss), gradients


class _ObjectModel:
    tables: tuple[str, ...] = ()
    fields = 1

    def __init__(self, kind: str, instance: Any, task: Task | None, dtype: str) -> None:
        for name in ("init", "loss_gradient"):
            if not callable(getattr(instance, name, None)):
                raise ModelError(f"{kind}: has no method {name}")
        self.task = task or _own_task(kind, instance)
        self.can_predict = callable(getattr(instance, "scores", None))
        self._guard = Guard(kind)
        self._instance = instance
        self._dtype = np.dtype(dtype)

    def init(self, rng: np.random.Generator) -> Params:
        made = self._guard.call(self._instance.init, rng)
        if not isinstance(made, Mapping) or not made:
            raise ModelError(f"{self._guard.kind}: init returned {type(made).__name__}, expected a dict of arrays")
        shapes = {str(name): np.shape(value) for name, value in made.items()}
        params = Params.zeros(shapes, self._dtype)
        for name, value in made.items():
            params[name][...] = self._guard.array(f"parameter {name!r}", value, shapes[name])
        return params

    def loss_gradient(self, params: Any, batch: Batch, gradient_out: Any) -> float:
        gradient_out.flat.fill(np.nan)  # so that what is forgotten is found
        loss = self._guard.call(self._instance.loss_gradient, params.read_only(), batch, gradient_out)
        for name, out in gradient_out.items():
            self._guard.array(f"gradient {name!r}", out, out.shape)
        return self._guard.loss(loss)

    def loss(self, params: Any, batch: Batch) -> float:
        scratch = params.on(np.empty_like(params.flat))
        return self._guard.loss(self._guard.call(self._instance.loss_gradient, params.read_only(), batch, scratch))

    def scores(self, params: Any, samples: Array) -> Array:
        if not self.can_predict:
            raise ModelError(f"{self._guard.kind}: cannot predict; it has no method scores")
        return np.asarray(self._guard.call(self._instance.scores, params.read_only(), samples))


def _own_task(kind: str, instance: Any) -> Task:
    named = getattr(instance, "task", "multiclass")
    if named not in get_args(Task):
        raise ModelError(f"{kind}: its task is {named!r}, expected one of {', '.join(get_args(Task))}")
    return cast(Task, named)
