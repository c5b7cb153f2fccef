"""Optimisers: functions ``init``, ``update`` and ``update_rows``. State is data; they run on a worker or on a shard.

All work on any slice of the parameters, and an element's result does not depend on the slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from hpcps.config import Optimizer as Options

Array = np.ndarray[Any, Any]
State = dict[str, Array]
Init = Callable[[Array], State]
Update = Callable[[Array, State, Array, float, int], None]
Prepare = Callable[[Array, State, Array, float], Callable[[int], None]]
UpdateRows = Callable[[Array, State, Array, Array, float, int], None]
Numbers = Callable[[int], tuple[float, ...]]


@dataclass(frozen=True)
class Optimizer:
    """``init(params) -> state``, ``update(params, state, gradient, gradient_scale, step)``,
    ``prepare(params, state, gradient, gradient_scale) -> update(step)`` where the arrays are the same in every step,
    and ``update_rows(params, state, gradient, index, gradient_scale, step)``.

    Every array of ``state`` has the shape and float dtype of ``params``. ``update`` takes ``params`` and ``gradient``
    of (n,); ``update_rows`` takes a table of (N, W) and changes its rows ``index`` (k,) int64, all distinct, by a
    gradient of (k, W): the same arithmetic, and the same bits, as ``update`` on these rows; the others stay as they
    are. Both write ``params`` and ``state`` in place; the gradient is multiplied by ``gradient_scale`` (1 / batch
    turns a sum into a mean); ``step`` counts from 1. Clipping by the norm is ``update``'s alone: rows do not know
    the norm of the whole gradient.
    """

    init: Init
    update: Update
    prepare: Prepare
    update_rows: UpdateRows


@dataclass(frozen=True)
class _Rule:
    """A kernel, the arrays of its state, and its numbers at a step, in the kernel's order, up to gradient_scale.

    ``counts_steps``: whether they depend on the step.
    """

    kernel: str
    states: tuple[str, ...]
    numbers: Numbers
    counts_steps: bool = False


def make(options: Options, kernels: Any, threads: int = 1) -> Optimizer:
    """The optimiser that the options name, on a back end's kernels; large updates are shared out over threads."""
    rule = _rule(options)
    dense, by_rows = getattr(kernels, rule.kernel), getattr(kernels, f"{rule.kernel}_rows")

    def init(params: Array) -> State:
        return {name: np.zeros_like(params) for name in rule.states}

    def update(params: Array, state: State, gradient: Array, gradient_scale: float, step: int) -> None:
        dense(params, *[state[s] for s in rule.states], gradient, *rule.numbers(step), gradient_scale, threads=threads)

    def prepare(params: Array, state: State, gradient: Array, gradient_scale: float) -> Callable[[int], None]:
        known = partial(change, params, state, gradient, gradient_scale)
        if options.clip_norm or threads > 1 or rule.counts_steps:
            return known
        arrays = params, *[state[s] for s in rule.states], gradient
        numbers = map(float, (*rule.numbers(0), gradient_scale))
        return _once_checked(known, partial(dense.unchecked, *arrays, *numbers))

    def update_rows(
        params: Array, state: State, gradient: Array, index: Array, gradient_scale: float, step: int
    ) -> None:
        states = [state[s] for s in rule.states]
        by_rows(params, *states, gradient, index, *rule.numbers(step), gradient_scale, threads=threads)

    change = _clipped(update, options.clip_norm, kernels.square_norm) if options.clip_norm else update
    return Optimizer(_ftrl_init(options) if options.kind == "ftrl" else init, change, prepare, update_rows)


def _once_checked(checked: Callable[[int], None], unchecked: Callable[[], None]) -> Callable[[int], None]:
    """An update whose arguments are checked the first time alone: they are the same ever after."""
    is_checked = False

    def update(step: int) -> None:
        nonlocal is_checked
        if is_checked:
            unchecked()
        else:
            checked(step)
            is_checked = True

    return update


def _rule(o: Options) -> _Rule:
    """What the kernels call it; each kernel's formula and source stand with it."""
    penalty = (o.l1, o.l2)
    if o.kind == "sgd" and not o.momentum:
        return _Rule("sgd", (), lambda step: (o.learning_rate, *penalty))
    if o.kind == "sgd":
        name = "nesterov" if o.nesterov else "momentum"
        return _Rule(name, ("velocity",), lambda step: (o.learning_rate, o.momentum, *penalty))
    if o.kind == "adagrad":
        return _Rule("adagrad", ("accumulator",), lambda step: (o.learning_rate, o.epsilon, *penalty))
    if o.kind == "rmsprop":
        return _Rule("rmsprop", ("mean_square",), lambda step: (o.learning_rate, o.decay, o.epsilon, *penalty))
    if o.kind == "ftrl":
        return _Rule("ftrl", ("z", "squares"), lambda step: (o.learning_rate, o.beta, *penalty))
    moments, shared = ("first", "second"), (o.learning_rate, o.beta1, o.beta2, o.epsilon)
    if o.kind == "adamw":
        return _Rule("adamw", moments, lambda step: (*shared, o.weight_decay, step), counts_steps=True)
    return _Rule("adam", moments, lambda step: (*shared, step, *penalty), counts_steps=True)


def _ftrl_init(options: Options) -> Init:
    """z such that the closed form gives the first parameters: FTRL computes parameters from z alone, and with z = 0
    all that have no gradient would become 0."""
    pull = options.beta / options.learning_rate + options.l2

    def init(params: Array) -> State:
        z = -(params * pull + np.sign(params) * options.l1).astype(params.dtype)
        return {"z": z, "squares": np.zeros_like(params)}

    return init


def _clipped(update: Update, limit: float, square_norm: Callable[[Array], float]) -> Update:
    """The mean gradient scaled down to the norm ``limit`` where it is longer (Pascanu, Mikolov and Bengio 2013)."""

    def clipped(params: Array, state: State, gradient: Array, gradient_scale: float, step: int) -> None:
        norm = math.sqrt(square_norm(gradient)) * gradient_scale
        if norm > limit:
            gradient_scale *= limit / norm
        update(params, state, gradient, gradient_scale, step)

    return clipped
