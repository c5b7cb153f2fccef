"""Optimisers: pairs of functions ``init`` and ``update``. State is data; the pair runs on a worker or on a shard.

Both work on any slice of the flat parameters, and an element's result does not depend on the slice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcps.config import Optimizer as Options

Array = np.ndarray[Any, Any]
State = dict[str, Array]
Init = Callable[[Array], State]
Update = Callable[[Array, State, Array, float, int], None]


@dataclass(frozen=True)
class Optimizer:
    """``init(params) -> state`` and ``update(params, state, gradient, gradient_scale, step)``.

    ``params``, ``gradient`` and every array of ``state``: one-dimensional, one length, one float dtype. ``update``
    writes ``params`` and ``state`` in place; the gradient is multiplied by ``gradient_scale`` (1 / batch turns a sum
    into a mean); ``step`` counts from 1.
    """

    init: Init
    update: Update


def make(options: Options, kernels: Any) -> Optimizer:
    """The optimiser that the options name, on a back end's kernels."""
    if options.kind == "sgd":
        return _momentum(options, kernels) if options.momentum else _sgd(options, kernels)
    return {"adagrad": _adagrad, "adam": _adam}[options.kind](options, kernels)


def _sgd(options: Options, kernels: Any) -> Optimizer:
    """Robbins and Monro 1951."""

    def update(params: Array, state: State, gradient: Array, gradient_scale: float, step: int) -> None:
        kernels.sgd(params, gradient, options.learning_rate, gradient_scale)

    return Optimizer(lambda params: {}, update)


def _momentum(options: Options, kernels: Any) -> Optimizer:
    """Polyak 1964, in the form velocity = momentum * velocity + gradient."""

    def update(params: Array, state: State, gradient: Array, gradient_scale: float, step: int) -> None:
        kernels.momentum(params, state["velocity"], gradient, options.learning_rate, options.momentum, gradient_scale)

    return Optimizer(lambda params: {"velocity": np.zeros_like(params)}, update)


def _adagrad(options: Options, kernels: Any) -> Optimizer:
    """Duchi, Hazan and Singer 2011."""

    def update(params: Array, state: State, gradient: Array, gradient_scale: float, step: int) -> None:
        kernels.adagrad(params, state["accumulator"], gradient, options.learning_rate, options.epsilon, gradient_scale)

    return Optimizer(lambda params: {"accumulator": np.zeros_like(params)}, update)


def _adam(options: Options, kernels: Any) -> Optimizer:
    """Kingma and Ba 2015, with bias correction."""

    def init(params: Array) -> State:
        return {"first": np.zeros_like(params), "second": np.zeros_like(params)}

    def update(params: Array, state: State, gradient: Array, gradient_scale: float, step: int) -> None:
        kernels.adam(
            params,
            state["first"],
            state["second"],
            gradient,
            options.learning_rate,
            options.beta1,
            options.beta2,
            options.epsilon,
            step,
            gradient_scale,
        )

    return Optimizer(init, update)
