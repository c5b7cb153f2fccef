"""Optimiser steps, one pass over the buffers and no reordering: vector body and scalar tail round alike."""

from __future__ import annotations

import numpy as np

from hpcps_kernels.cpu._jit import kernel
from hpcps_kernels.interface import Array


@kernel
def sgd(params: Array, gradient: Array, learning_rate: float, gradient_scale: float) -> None:
    rate, scale = params.dtype.type(learning_rate), params.dtype.type(gradient_scale)
    for i in range(params.shape[0]):
        params[i] -= rate * (gradient[i] * scale)


@kernel
def momentum(
    params: Array,
    velocity: Array,
    gradient: Array,
    learning_rate: float,
    momentum: float,
    gradient_scale: float,
) -> None:
    to = params.dtype.type
    rate, keep, scale = to(learning_rate), to(momentum), to(gradient_scale)
    for i in range(params.shape[0]):
        v = keep * velocity[i] + gradient[i] * scale
        velocity[i] = v
        params[i] -= rate * v


@kernel
def adagrad(
    params: Array,
    accumulator: Array,
    gradient: Array,
    learning_rate: float,
    epsilon: float,
    gradient_scale: float,
) -> None:
    to = params.dtype.type
    rate, floor, scale = to(learning_rate), to(epsilon), to(gradient_scale)
    for i in range(params.shape[0]):
        g = gradient[i] * scale
        total = accumulator[i] + g * g
        accumulator[i] = total
        params[i] -= rate * g / (np.sqrt(total) + floor)


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
    gradient_scale: float,
) -> None:
    rate, root = learning_rate / (1 - beta1**step), (1 - beta2**step) ** 0.5
    adam_pass(
        params,
        first,
        second,
        gradient,
        rate,
        root,
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        epsilon,
        gradient_scale,
    )


@kernel
def adam_pass(
    params: Array,
    first: Array,
    second: Array,
    gradient: Array,
    rate: float,
    root: float,
    keep1: float,
    take1: float,
    keep2: float,
    take2: float,
    epsilon: float,
    gradient_scale: float,
) -> None:
    to = params.dtype.type
    lr, rt, eps, scale = to(rate), to(root), to(epsilon), to(gradient_scale)
    k1, t1, k2, t2 = to(keep1), to(take1), to(keep2), to(take2)
    for i in range(params.shape[0]):
        g = gradient[i] * scale
        m = k1 * first[i] + t1 * g
        v = k2 * second[i] + t2 * (g * g)
        first[i] = m
        second[i] = v
        params[i] -= lr * m / (np.sqrt(v) / rt + eps)
