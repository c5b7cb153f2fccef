"""Optimisers: ``init``, ``update``, ``update_rows``, ``update_packed``. State is data; they run on a worker or a shard.

All work on any slice of the parameters, and an element's result does not depend on the slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from hpcps import device
from hpcps.config import Optimizer as Options
from hpcps.own_optimizer import OwnOptimizer

Array = np.ndarray[Any, Any]
State = dict[str, Array]
Init = Callable[[Array], State]
Update = Callable[[Array, State, Array, float, int], None]
Bound = Callable[[int], None]
Prepare = Callable[[Array, State, Array, float], Bound]
PrepareSummed = Callable[[Array, State, Array, int, float], Bound]
UpdateRows = Callable[[Array, State, Array, Array, float, int], None]
UpdatePacked = Callable[[Array, Array, Array, float, int], None]
Numbers = Callable[[int], tuple[float, ...]]


@dataclass(frozen=True)
class Optimizer:
    """``init(params) -> state``, ``update(params, state, gradient, gradient_scale, step)``,
    ``prepare(params, state, gradient, gradient_scale) -> update(step)`` where the arrays are the same in every step,
    ``prepare_summed(params, state, gradients, column, gradient_scale) -> update(step)`` where the gradient is to be
    summed: it is that of the rows of ``gradients`` (P, N), n columns from ``column`` on,
    ``update_rows(params, state, gradient, index, gradient_scale, step)`` and
    ``update_packed(table, gradient, index, gradient_scale, step)``.

    All arrays are where the kernels' are. Every array of ``state`` has the shape and float dtype of ``params``.
    ``update`` takes ``params`` and ``gradient`` of (n,); ``update_rows`` takes a table of (N, W) and changes its rows
    ``index`` (k,) int64, all distinct, by a gradient of (k, W): the same arithmetic, and the same bits, as ``update``
    on these rows; the others stay as they are. ``update_packed`` does the same where each row of ``table`` (N, P) holds
    W parameters and then W numbers of each array of ``state``, in its order. All write in place; the gradient is
    multiplied by ``gradient_scale`` (1 / batch turns a sum into a mean); ``step`` counts from 1. Clipping by the norm
    is ``update``'s alone: rows do not know the norm of the whole gradient. ``prepare_summed`` is None where the sum is
    to be there at once: the norm is taken of it, threads share it out, the user's own optimiser gets it.
    """

    init: Init
    update: Update
    prepare: Prepare
    prepare_summed: PrepareSummed | None
    update_rows: UpdateRows
    update_packed: UpdatePacked


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
    if ":" in options.kind:
        own = OwnOptimizer(options.kind)
        return Optimizer(own.init, own.update, own.prepare, None, own.update_rows, own.update_packed)
    rule = _rule(options)
    dense, by_rows = getattr(kernels, rule.kernel), getattr(kernels, f"{rule.kernel}_rows")
    packed = getattr(kernels, f"{rule.kernel}_packed") if rule.states else by_rows
    here = device.of(kernels)
    is_bound = not options.clip_norm and threads == 1

    def init(params: Array) -> State:
        return {name: here.zeros(params.shape, params.dtype) for name in rule.states}

    def update(params: Array, state: State, gradient: Array, gradient_scale: float, step: int) -> None:
        dense(params, *[state[s] for s in rule.states], gradient, *rule.numbers(step), gradient_scale, threads=threads)

    def bound(kernel: Any, params: Array, state: State, gradient: tuple[Any, ...], gradient_scale: float) -> Bound:
        """The kernel with all that is the same in every step."""
        given = params, *[state[s] for s in rule.states], *gradient
        if rule.counts_steps:
            call = kernel.bind(*given)
            return lambda step: call(*rule.numbers(step), gradient_scale)
        same = kernel.bind(*given, *rule.numbers(0), gradient_scale)
        return lambda step: same()

    def prepare(params: Array, state: State, gradient: Array, gradient_scale: float) -> Bound:
        if is_bound:
            return bound(dense, params, state, (gradient,), gradient_scale)
        return partial(change, params, state, gradient, gradient_scale)

    def prepare_summed(params: Array, state: State, gradients: Array, column: int, gradient_scale: float) -> Bound:
        return bound(getattr(kernels, f"{rule.kernel}_summed"), params, state, (gradients, column), gradient_scale)

    def update_rows(
        params: Array, state: State, gradient: Array, index: Array, gradient_scale: float, step: int
    ) -> None:
        states = [state[s] for s in rule.states]
        by_rows(params, *states, gradient, index, *rule.numbers(step), gradient_scale, threads=threads)

    def update_packed(table: Array, gradient: Array, index: Array, gradient_scale: float, step: int) -> None:
        packed(table, gradient, index, *rule.numbers(step), gradient_scale, threads=threads)

    change = _clipped(update, options.clip_norm, kernels.square_norm) if options.clip_norm else update
    start = _ftrl_init(options, here) if options.kind == "ftrl" else init
    return Optimizer(start, change, prepare, prepare_summed if is_bound else None, update_rows, update_packed)


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


def _ftrl_init(options: Options, here: device.Device) -> Init:
    """z such that the closed form gives the first parameters: FTRL computes parameters from z alone, and with z = 0
    all that have no gradient would become 0."""
    pull = options.beta / options.learning_rate + options.l2

    def init(params: Array) -> State:
        z, squares = (here.zeros(params.shape, params.dtype) for _ in range(2))
        first = here.read(params)
        here.write(z, -(first * pull + np.sign(first) * options.l1))
        return {"z": z, "squares": squares}

    return init


def _clipped(update: Update, limit: float, square_norm: Callable[[Array], float]) -> Update:
    """The mean gradient scaled down to the norm ``limit`` where it is longer (Pascanu, Mikolov and Bengio 2013)."""

    def clipped(params: Array, state: State, gradient: Array, gradient_scale: float, step: int) -> None:
        norm = math.sqrt(square_norm(gradient)) * gradient_scale
        if norm > limit:
            gradient_scale *= limit / norm
        update(params, state, gradient, gradient_scale, step)

    return clipped
