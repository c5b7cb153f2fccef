"""The user's own optimiser: ``optimizer.kind = "file.py:name"``, on a worker or on a server shard.

``name`` is one of

- a function ``f(params, gradient, step)`` that changes ``params`` in place;
- an object, or a class to be called without arguments, with ``update(params, gradient, state, step)``, which changes
  ``params`` and the arrays of ``state`` in place, and, where it keeps any, ``init(params) -> {name: array}`` with
  arrays of the shape of ``params``.

``params`` is any slice of the parameters, (n,), or some rows of a table, (k, W), and ``gradient`` the mean gradient
there, of the same shape and dtype; ``step`` counts from 1. What becomes of an element may depend on that element alone:
parameters are cut over workers and shards. What the code raises or gets wrong is a
:class:`~hpcps.errors.ModelError` that names the file and its line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from hpcps.errors import ModelError, NotFiniteError
from hpcps.own import Guard, load_name

Array = np.ndarray[Any, Any]
State = dict[str, Array]


class OwnOptimizer:
    """What :class:`hpcps.optim.Optimizer` is made of."""

    def __init__(self, kind: str) -> None:
        named = load_name(kind, "optimizer.kind")
        self._guard = Guard(kind)
        instance = self._guard.call(named) if isinstance(named, type) else named
        self._init = getattr(instance, "init", None)
        if callable(getattr(instance, "update", None)):
            self._update: Callable[..., Any] = instance.update
        elif callable(instance):
            self._update = lambda params, gradient, state, step: instance(params, gradient, step)
        else:
            raise ModelError(f"{kind}: is neither a function nor an object with update")

    def init(self, params: Array) -> State:
        """The state that belongs to ``params``."""
        if self._init is None:
            return {}
        made = self._guard.call(self._init, params.copy())
        if not isinstance(made, Mapping):
            raise ModelError(f"{self._guard.kind}: init returned {type(made).__name__}, expected a dict of arrays")
        return {
            str(name): self._guard.array(f"state {name!r}", value, params.shape).astype(params.dtype)
            for name, value in made.items()
        }

    def update(self, params: Array, state: State, gradient: Array, gradient_scale: float, step: int) -> None:
        """Change ``params`` and ``state`` in place. Raises NotFiniteError where a parameter is no number any more."""
        mean = gradient * params.dtype.type(gradient_scale)
        self._guard.call(self._update, params, mean, state, step)
        if not np.isfinite(params).all():
            raise NotFiniteError(f"{self._guard.kind}: a parameter is not finite after step {step}")

    def prepare(self, params: Array, state: State, gradient: Array, gradient_scale: float) -> Callable[[int], None]:
        """:meth:`update` for arrays that are the same in every step."""
        return partial(self.update, params, state, gradient, gradient_scale)

    def update_rows(
        self, params: Array, state: State, gradient: Array, index: Array, gradient_scale: float, step: int
    ) -> None:
        """The same for the rows ``index`` of a table. Raises IndexError for a row that is not there."""
        rows, own = params[index], {name: array[index] for name, array in state.items()}
        self.update(rows, own, gradient, gradient_scale, step)
        params[index] = rows
        for name, array in own.items():
            state[name][index] = array

    def update_packed(self, table: Array, gradient: Array, index: Array, gradient_scale: float, step: int) -> None:
        """The same where each row of ``table`` holds parameters, then state."""
        packed, width = table[index], gradient.shape[1]
        rows = packed[:, :width].copy()
        names = self.init(rows[:0])
        state = {name: packed[:, width * n : width * (n + 1)].copy() for n, name in enumerate(names, 1)}
        self.update(rows, state, gradient, gradient_scale, step)
        table[index] = np.concatenate([rows, *state.values()], axis=1)
