"""Optimiser steps, one pass over the buffers and no reordering: vector body and scalar tail round alike.

An optimiser's arithmetic is written once, for an element: step(param, states..., g, constants) returns the new
ones. `_dense` and `_rows` make the two kernels of it. Dense kernels are bound by memory; by rows, by the latency of
memory, hence the prefetch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.cpu._prefetch import prefetch
from hpcps_kernels.interface import Array

Number = Any  # a scalar of the parameters' dtype
Constants = tuple[float, ...]
Scales = tuple[float, float, float]  # gradient_scale, l1, l2

AHEAD_BYTES = 2048  # between the row that is updated and the one that is sent for
AHEAD_MAX = 32  # rows
LINE_BYTES = 64


@part
def _sgd(p: Number, g: Number, constants: Constants) -> Number:
    return p - type(p)(constants[0]) * g


@part
def _momentum(p: Number, velocity: Number, g: Number, constants: Constants) -> tuple[Number, Number]:
    to = type(p)
    v = to(constants[1]) * velocity + g
    return p - to(constants[0]) * v, v


@part
def _nesterov(p: Number, velocity: Number, g: Number, constants: Constants) -> tuple[Number, Number]:
    to = type(p)
    keep = to(constants[1])
    v = keep * velocity + g
    return p - to(constants[0]) * (g + keep * v), v


@part
def _adagrad(p: Number, accumulator: Number, g: Number, constants: Constants) -> tuple[Number, Number]:
    to = type(p)
    total = accumulator + g * g
    return p - to(constants[0]) * g / (np.sqrt(total) + to(constants[1])), total


@part
def _rmsprop(p: Number, mean_square: Number, g: Number, constants: Constants) -> tuple[Number, Number]:
    to = type(p)
    mean = to(constants[1]) * mean_square + to(constants[2]) * (g * g)
    return p - to(constants[0]) * g / (np.sqrt(mean) + to(constants[3])), mean


@part
def _adam(p: Number, first: Number, second: Number, g: Number, constants: Constants) -> tuple[Number, Number, Number]:
    to = type(p)
    rate, root, epsilon = to(constants[0]), to(constants[1]), to(constants[2])
    m = to(constants[3]) * first + to(constants[4]) * g
    v = to(constants[5]) * second + to(constants[6]) * (g * g)
    return p - rate * m / (np.sqrt(v) / root + epsilon), m, v


@part
def _adamw(p: Number, first: Number, second: Number, g: Number, constants: Constants) -> tuple[Number, Number, Number]:
    return _adam(p - type(p)(constants[7]) * p, first, second, g, constants)


@part
def _ftrl(p: Number, z: Number, squares: Number, g: Number, constants: Constants) -> tuple[Number, Number, Number]:
    to = type(p)
    inverse, beta, l1, l2 = to(constants[0]), to(constants[1]), to(constants[2]), to(constants[3])
    total = squares + g * g
    root = np.sqrt(total)
    z += g - (root - np.sqrt(squares)) * inverse * p
    nearer = z - (l1 if z > 0 else -l1)
    return (to(0) if abs(z) <= l1 else -nearer / ((beta + root) * inverse + l2)), z, total


@part
def _penalised(g: Number, p: Number, l1: Number, l2: Number) -> Number:
    """g + l2 * p + l1 * sign(p); g itself, even -0, without penalties."""
    if l1 == 0 and l2 == 0:
        return g
    one, zero = type(p)(1), type(p)(0)
    sign = (one if p > 0 else zero) - (one if p < 0 else zero)
    return g + (l2 * p + l1 * sign)


@part
def _rounded(to: Any, scales: Scales) -> tuple[Number, Number, Number]:
    return to(scales[0]), to(scales[1]), to(scales[2])


@part
def _check_index(index: Array, rows: int) -> None:
    outside = False
    for i in range(index.shape[0]):
        outside |= (index[i] < 0) | (index[i] >= rows)
    if outside:
        raise IndexError("an index is outside 0..N-1")


@part
def _send_for(table: Array, row: int) -> None:
    for d in range(0, table.shape[1], LINE_BYTES // table.itemsize):
        prefetch(table, row, d)


@part
def _ahead(table: Array) -> int:
    return max(2, min(AHEAD_MAX, AHEAD_BYTES // max(1, table.shape[1] * table.itemsize)))


# A number of states each: Numba has no loop over arrays that would still become vectors.


def _dense_0(step: Callable[..., Any]) -> Callable[..., None]:
    def dense(params: Array, gradient: Array, scales: Scales, constants: Constants) -> None:
        scale, l1, l2 = _rounded(params.dtype.type, scales)
        for i in range(params.shape[0]):
            params[i] = step(params[i], _penalised(gradient[i] * scale, params[i], l1, l2), constants)

    return dense


def _dense_1(step: Callable[..., Any]) -> Callable[..., None]:
    def dense(params: Array, state: Array, gradient: Array, scales: Scales, constants: Constants) -> None:
        scale, l1, l2 = _rounded(params.dtype.type, scales)
        for i in range(params.shape[0]):
            g = _penalised(gradient[i] * scale, params[i], l1, l2)
            params[i], state[i] = step(params[i], state[i], g, constants)

    return dense


def _dense_2(step: Callable[..., Any]) -> Callable[..., None]:
    def dense(params: Array, one: Array, two: Array, gradient: Array, scales: Scales, constants: Constants) -> None:
        scale, l1, l2 = _rounded(params.dtype.type, scales)
        for i in range(params.shape[0]):
            g = _penalised(gradient[i] * scale, params[i], l1, l2)
            params[i], one[i], two[i] = step(params[i], one[i], two[i], g, constants)

    return dense


def _rows_0(step: Callable[..., Any]) -> Callable[..., None]:
    def rows(params: Array, gradient: Array, index: Array, scales: Scales, constants: Constants) -> None:
        _check_index(index, params.shape[0])
        scale, l1, l2 = _rounded(params.dtype.type, scales)
        ahead, width = _ahead(params), params.shape[1]
        for i in range(index.shape[0]):
            soon = index[min(i + ahead, index.shape[0] - 1)]
            _send_for(params, soon)
            p, g = params[index[i]], gradient[i]
            for d in range(width):
                p[d] = step(p[d], _penalised(g[d] * scale, p[d], l1, l2), constants)

    return rows


def _rows_1(step: Callable[..., Any]) -> Callable[..., None]:
    def rows(params: Array, state: Array, gradient: Array, index: Array, scales: Scales, constants: Constants) -> None:
        _check_index(index, params.shape[0])
        scale, l1, l2 = _rounded(params.dtype.type, scales)
        ahead, width = _ahead(params), params.shape[1]
        for i in range(index.shape[0]):
            soon = index[min(i + ahead, index.shape[0] - 1)]
            _send_for(params, soon)
            _send_for(state, soon)
            p, s, g = params[index[i]], state[index[i]], gradient[i]
            for d in range(width):
                p[d], s[d] = step(p[d], s[d], _penalised(g[d] * scale, p[d], l1, l2), constants)

    return rows


def _rows_2(step: Callable[..., Any]) -> Callable[..., None]:
    def rows(
        params: Array, one: Array, two: Array, gradient: Array, index: Array, scales: Scales, constants: Constants
    ) -> None:
        _check_index(index, params.shape[0])
        scale, l1, l2 = _rounded(params.dtype.type, scales)
        ahead, width = _ahead(params), params.shape[1]
        for i in range(index.shape[0]):
            soon = index[min(i + ahead, index.shape[0] - 1)]
            _send_for(params, soon)
            _send_for(one, soon)
            _send_for(two, soon)
            p, s, t, g = params[index[i]], one[index[i]], two[index[i]], gradient[i]
            for d in range(width):
                p[d], s[d], t[d] = step(p[d], s[d], t[d], _penalised(g[d] * scale, p[d], l1, l2), constants)

    return rows


_LOOPS = ((_dense_0, _rows_0), (_dense_1, _rows_1), (_dense_2, _rows_2))


def _updates(
    name: str, states: int, step: Callable[..., Any], constants: Callable[..., tuple[Scales, Constants]]
) -> list[Callable[..., None]]:
    """The dense kernel and the one by rows; `constants` makes of their numbers what the loops take."""
    made = []
    for loop, called, arrays in zip(_LOOPS[states], (name, f"{name}_rows"), (states + 2, states + 3), strict=True):
        run = loop(step)
        run.__name__ = run.__qualname__ = called  # compiled code goes by this name, in memory and on disk
        made.append(_caller(kernel(run), arrays, constants))
    return made


def _caller(
    run: Callable[..., None], arrays: int, constants: Callable[..., tuple[Scales, Constants]]
) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        run(*arguments[:arrays], *constants(*arguments[arrays:]))

    return call


def _one_constant(rate: float, l1: float, l2: float, scale: float) -> tuple[Scales, Constants]:
    return (scale, l1, l2), (rate,)


def _two_constants(rate: float, other: float, l1: float, l2: float, scale: float) -> tuple[Scales, Constants]:
    return (scale, l1, l2), (rate, other)


def _rmsprop_constants(
    rate: float, decay: float, epsilon: float, l1: float, l2: float, scale: float
) -> tuple[Scales, Constants]:
    return (scale, l1, l2), (rate, decay, 1 - decay, epsilon)


def _adam_constants(
    rate: float, beta1: float, beta2: float, epsilon: float, step: int, l1: float, l2: float, scale: float
) -> tuple[Scales, Constants]:
    corrected, root = rate / (1 - beta1**step), (1 - beta2**step) ** 0.5
    return (scale, l1, l2), (corrected, root, epsilon, beta1, 1 - beta1, beta2, 1 - beta2)


def _adamw_constants(
    rate: float, beta1: float, beta2: float, epsilon: float, weight_decay: float, step: int, scale: float
) -> tuple[Scales, Constants]:
    scales, constants = _adam_constants(rate, beta1, beta2, epsilon, step, 0.0, 0.0, scale)
    return scales, (*constants, rate * weight_decay)


def _ftrl_constants(rate: float, beta: float, l1: float, l2: float, scale: float) -> tuple[Scales, Constants]:
    return (scale, 0.0, 0.0), (1 / rate, beta, l1, l2)


sgd, sgd_rows = _updates("sgd", 0, _sgd, _one_constant)
momentum, momentum_rows = _updates("momentum", 1, _momentum, _two_constants)
nesterov, nesterov_rows = _updates("nesterov", 1, _nesterov, _two_constants)
adagrad, adagrad_rows = _updates("adagrad", 1, _adagrad, _two_constants)
rmsprop, rmsprop_rows = _updates("rmsprop", 1, _rmsprop, _rmsprop_constants)
adam, adam_rows = _updates("adam", 2, _adam, _adam_constants)
adamw, adamw_rows = _updates("adamw", 2, _adamw, _adamw_constants)
ftrl, ftrl_rows = _updates("ftrl", 2, _ftrl, _ftrl_constants)
