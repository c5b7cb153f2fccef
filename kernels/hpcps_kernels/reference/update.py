"""Optimiser steps over flat buffers, in place; every array is (n,) of one dtype F.

The gradient is multiplied by gradient_scale first (1 / batch, say, where it is a sum). Hyper-parameters are
rounded to F, and an element's result never depends on which slice of a buffer a call covers.
"""

from __future__ import annotations

import numpy as np

from hpcps_kernels.interface import Array


def sgd(params: Array, gradient: Array, learning_rate: float, gradient_scale: float) -> None:
    """params -= learning_rate * gradient (Robbins & Monro 1951)."""
    to = params.dtype.type
    params -= to(learning_rate) * (gradient * to(gradient_scale))


def momentum(
    params: Array,
    velocity: Array,
    gradient: Array,
    learning_rate: float,
    momentum: float,
    gradient_scale: float,
) -> None:
    """velocity = momentum * velocity + g; params -= learning_rate * velocity (Polyak 1964, as PyTorch)."""
    to = params.dtype.type
    velocity[:] = to(momentum) * velocity + gradient * to(gradient_scale)
    params -= to(learning_rate) * velocity


def adagrad(
    params: Array,
    accumulator: Array,
    gradient: Array,
    learning_rate: float,
    epsilon: float,
    gradient_scale: float,
) -> None:
    """accumulator += g^2; params -= learning_rate * g / (sqrt(accumulator) + epsilon) (Duchi et al. 2011)."""
    to = params.dtype.type
    g = gradient * to(gradient_scale)
    accumulator += g * g
    params -= to(learning_rate) * g / (np.sqrt(accumulator) + to(epsilon))


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
    """Adam with both moments corrected for their bias; step counts from 1 (Kingma & Ba 2015, algorithm 1)."""
    to = params.dtype.type
    rate, root = to(learning_rate / (1 - beta1**step)), to((1 - beta2**step) ** 0.5)
    g = gradient * to(gradient_scale)
    first[:] = to(beta1) * first + to(1 - beta1) * g
    second[:] = to(beta2) * second + to(1 - beta2) * (g * g)
    params -= rate * first / (np.sqrt(second) / root + to(epsilon))
