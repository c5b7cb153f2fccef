"""Optimiser steps in place, over flat buffers and over rows of tables; every array holds one dtype F.

The gradient is multiplied by gradient_scale first (1 / batch, say, where it is a sum). Where l1 or l2 is not 0,
l2 * params + l1 * sign(params) is added to it: the gradient of l2 / 2 * |params|^2 + l1 * |params|_1, with 0 at 0.
Hyper-parameters are rounded to F, and an element's result never depends on which slice of a buffer a call
covers. A nan or inf in the gradient reaches that element of parameters and states, and no other.

Dense kernels take arrays of (n,). NAME_rows does the same arithmetic on some rows of tables: params and states
(N, W), of which the rows `index` (k,) int64 are updated with gradient (k, W); all others stay as they are, so
that moments of rows without a gradient do not decay ("lazy"). The indexes must be distinct, which is the
caller's duty; one outside 0..N-1 raises IndexError before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpcps_kernels.interface import Array


def sgd(params: Array, gradient: Array, learning_rate: float, l1: float, l2: float, gradient_scale: float) -> None:
    """params -= learning_rate * g (Robbins & Monro 1951)."""
    to = params.dtype.type
    params -= to(learning_rate) * _penalised(gradient, params, l1, l2, gradient_scale)


def momentum(
    params: Array,
    velocity: Array,
    gradient: Array,
    learning_rate: float,
    momentum: float,
    l1: float,
    l2: float,
    gradient_scale: float,
) -> None:
    """velocity = momentum * velocity + g; params -= learning_rate * velocity (Polyak 1964, as PyTorch)."""
    to = params.dtype.type
    velocity[:] = to(momentum) * velocity + _penalised(gradient, params, l1, l2, gradient_scale)
    params -= to(learning_rate) * velocity


def nesterov(
    params: Array,
    velocity: Array,
    gradient: Array,
    learning_rate: float,
    momentum: float,
    l1: float,
    l2: float,
    gradient_scale: float,
) -> None:
    """velocity = momentum * velocity + g; params -= learning_rate * (g + momentum * velocity).

    Nesterov 1983 in the form of Sutskever et al. 2013, written as PyTorch writes it.
    """
    to = params.dtype.type
    g = _penalised(gradient, params, l1, l2, gradient_scale)
    velocity[:] = to(momentum) * velocity + g
    params -= to(learning_rate) * (g + to(momentum) * velocity)


def adagrad(
    params: Array,
    accumulator: Array,
    gradient: Array,
    learning_rate: float,
    epsilon: float,
    l1: float,
    l2: float,
    gradient_scale: float,
) -> None:
    """accumulator += g^2; params -= learning_rate * g / (sqrt(accumulator) + epsilon) (Duchi et al. 2011)."""
    to = params.dtype.type
    g = _penalised(gradient, params, l1, l2, gradient_scale)
    accumulator += g * g
    params -= to(learning_rate) * g / (np.sqrt(accumulator) + to(epsilon))


def rmsprop(
    params: Array,
    mean_square: Array,
    gradient: Array,
    learning_rate: float,
    decay: float,
    epsilon: float,
    l1: float,
    l2: float,
    gradient_scale: float,
) -> None:
    """mean_square = decay * mean_square + (1 - decay) * g^2;
    params -= learning_rate * g / (sqrt(mean_square) + epsilon) (Tieleman & Hinton 2012, as PyTorch)."""
    to = params.dtype.type
    g = _penalised(gradient, params, l1, l2, gradient_scale)
    mean_square[:] = to(decay) * mean_square + to(1 - decay) * (g * g)
    params -= to(learning_rate) * g / (np.sqrt(mean_square) + to(epsilon))


def adam(
    params: Array,
    first: Array,
    second: Array,
    gradient: Array,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
    l1: float,
    l2: float,
    gradient_scale: float,
) -> None:
    """Adam with both moments corrected for their bias; step counts from 1 (Kingma & Ba 2015, algorithm 1)."""
    to = params.dtype.type
    rate, root = to(learning_rate / (1 - beta1**step)), to((1 - beta2**step) ** 0.5)
    g = _penalised(gradient, params, l1, l2, gradient_scale)
    first[:] = to(beta1) * first + to(1 - beta1) * g
    second[:] = to(beta2) * second + to(1 - beta2) * (g * g)
    params -= rate * first / (np.sqrt(second) / root + to(epsilon))


def adamw(
    params: Array,
    first: Array,
    second: Array,
    gradient: Array,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    step: int,
    gradient_scale: float,
) -> None:
    """params -= learning_rate * weight_decay * params, then `adam` without penalties (Loshchilov & Hutter 2019)."""
    params -= params.dtype.type(learning_rate * weight_decay) * params
    adam(params, first, second, gradient, learning_rate, beta1, beta2, epsilon, step, 0.0, 0.0, gradient_scale)


def ftrl(
    params: Array,
    z: Array,
    squares: Array,
    gradient: Array,
    learning_rate: float,
    beta: float,
    l1: float,
    l2: float,
    gradient_scale: float,
) -> None:
    """FTRL-proximal (McMahan et al. 2013, algorithm 1; learning_rate is its alpha).

    z += g - (sqrt(squares + g^2) - sqrt(squares)) / alpha * params; squares += g^2; then params = 0 where
    |z| <= l1, else -(z - sign(z) * l1) / ((beta + sqrt(squares)) / alpha + l2). Here l1 and l2 are the
    closed form's and nothing is added to g. Division by alpha is multiplication by 1 / alpha.
    """
    to = params.dtype.type
    g = gradient * to(gradient_scale)
    total = squares + g * g
    z += g - (np.sqrt(total) - np.sqrt(squares)) * to(1 / learning_rate) * params
    squares[:] = total
    divisor = (to(beta) + np.sqrt(total)) * to(1 / learning_rate) + to(l2)
    zero = np.abs(z) <= to(l1)
    params[:] = np.where(zero, to(0), -(z - np.copysign(to(l1), z)) / np.where(zero, to(1), divisor))


def _penalised(gradient: Array, params: Array, l1: float, l2: float, gradient_scale: float) -> Array:
    to = params.dtype.type
    g: Array = gradient * to(gradient_scale)
    if to(l1) == 0 and to(l2) == 0:
        return g
    return g + (to(l2) * params + to(l1) * np.sign(params))


def _by_rows(dense: Callable[..., None], tables: int) -> Callable[..., None]:
    """The dense kernel of so many written arrays, on picked rows: picked out, updated, put back."""

    def rows(*arguments: Any) -> None:
        written, (gradient, index, *numbers) = arguments[:tables], arguments[tables:]
        if ((index < 0) | (index >= len(written[0]))).any():
            raise IndexError(f"{dense.__name__}_rows: an index is outside 0..N-1")
        picked = [table[index].reshape(-1) for table in written]
        dense(*picked, gradient.reshape(-1), *numbers)
        for table, new in zip(written, picked, strict=True):
            table[index] = new.reshape(gradient.shape)

    rows.__doc__ = f"`{dense.__name__}` on the rows `index` of tables (N, W), gradient (k, W); others stay as they are."
    return rows


sgd_rows = _by_rows(sgd, 1)
momentum_rows = _by_rows(momentum, 2)
nesterov_rows = _by_rows(nesterov, 2)
adagrad_rows = _by_rows(adagrad, 2)
rmsprop_rows = _by_rows(rmsprop, 2)
adam_rows = _by_rows(adam, 3)
adamw_rows = _by_rows(adamw, 3)
ftrl_rows = _by_rows(ftrl, 3)
