"""Optimiser steps, one pass over the buffers and no reordering: vector body and scalar tail round alike.

An optimiser's arithmetic is written once, for an element: step(param, states..., g, numbers) returns the new
ones. `_dense` and `_rows` make its two kernels. Dense ones are bound by memory, those by rows by its latency,
hence the prefetch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.cpu._prefetch import prefetch
from hpcps_kernels.interface import Array

Number = Any  # a scalar of the parameters' dtype
Numbers = tuple[float, ...]  # gradient_scale, l1, l2, then what the optimiser needs
Kernel = Callable[..., None]

AHEAD_BYTES = 2048  # between the row that is updated and the one that is sent for
AHEAD_MAX = 32  # rows
LINE_BYTES = 64


@part
def _sgd(p: Number, g: Number, numbers: Numbers) -> Number:
    return p - type(p)(numbers[3]) * g


@part
def _momentum(p: Number, velocity: Number, g: Number, numbers: Numbers) -> tuple[Number, Number]:
    to = type(p)
    v = to(numbers[4]) * velocity + g
    return p - to(numbers[3]) * v, v


@part
def _nesterov(p: Number, velocity: Number, g: Number, numbers: Numbers) -> tuple[Number, Number]:
    to = type(p)
    keep = to(numbers[4])
    v = keep * velocity + g
    return p - to(numbers[3]) * (g + keep * v), v


@part
def _adagrad(p: Number, accumulator: Number, g: Number, numbers: Numbers) -> tuple[Number, Number]:
    to = type(p)
    total = accumulator + g * g
    return p - to(numbers[3]) * g / (np.sqrt(total) + to(numbers[4])), total


@part
def _rmsprop(p: Number, mean_square: Number, g: Number, numbers: Numbers) -> tuple[Number, Number]:
    to = type(p)
    mean = to(numbers[4]) * mean_square + to(numbers[5]) * (g * g)
    return p - to(numbers[3]) * g / (np.sqrt(mean) + to(numbers[6])), mean


@part
def _adam(p: Number, first: Number, second: Number, g: Number, numbers: Numbers) -> tuple[Number, Number, Number]:
    to = type(p)
    rate, root, epsilon = to(numbers[3]), to(numbers[4]), to(numbers[5])
    m = to(numbers[6]) * first + to(numbers[7]) * g
    v = to(numbers[8]) * second + to(numbers[9]) * (g * g)
    return p - rate * m / (np.sqrt(v) / root + epsilon), m, v


@part
def _adamw(p: Number, first: Number, second: Number, g: Number, numbers: Numbers) -> tuple[Number, Number, Number]:
    stepped: tuple[Number, Number, Number] = _adam(p - type(p)(numbers[10]) * p, first, second, g, numbers)
    return stepped


@part
def _ftrl(p: Number, z: Number, squares: Number, g: Number, numbers: Numbers) -> tuple[Number, Number, Number]:
    to = type(p)
    inverse, beta, l1, l2 = to(numbers[3]), to(numbers[4]), to(numbers[5]), to(numbers[6])
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
def _check_index(index: Array, rows: int) -> None:
    outside = False
    for i in range(index.shape[0]):
        outside |= (index[i] < 0) | (index[i] >= rows)
    if outside:
        raise IndexError("an index is outside 0..N-1")


@part
def _send_for(table: Array, row: int, line: int) -> None:
    d = 0
    while d < table.shape[1]:  # a range of unknown step would divide, which takes longer than all of this
        prefetch(table, row, d)
        d += line
    prefetch(table, row, table.shape[1] - 1)


@part
def _ahead(table: Array) -> int:
    return int(max(2, min(AHEAD_MAX, AHEAD_BYTES // max(1, table.shape[1] * table.itemsize))))


# A number of states each: Numba has no loop over arrays that would still become vectors. Loops that are known to
# have no penalty are made of the same code, and twice as fast in the caches. Rows are found by unsigned offsets
# into flat views: a view of each row would be counted, atomically, which costs more than the row.


def _dense_0(step: Callable[..., Any]) -> Kernel:
    @part
    def loop(params: Array, gradient: Array, l1: Number, l2: Number, numbers: Numbers) -> None:
        scale = params.dtype.type(numbers[0])
        for i in range(params.shape[0]):
            params[i] = step(params[i], _penalised(gradient[i] * scale, params[i], l1, l2), numbers)

    def dense(params: Array, gradient: Array, numbers: Numbers) -> None:
        to = params.dtype.type
        l1, l2 = to(numbers[1]), to(numbers[2])
        if l1 == 0 and l2 == 0:
            loop(params, gradient, to(0), to(0), numbers)
        else:
            loop(params, gradient, l1, l2, numbers)

    return dense


def _dense_1(step: Callable[..., Any]) -> Kernel:
    @part
    def loop(params: Array, state: Array, gradient: Array, l1: Number, l2: Number, numbers: Numbers) -> None:
        scale = params.dtype.type(numbers[0])
        for i in range(params.shape[0]):
            g = _penalised(gradient[i] * scale, params[i], l1, l2)
            params[i], state[i] = step(params[i], state[i], g, numbers)

    def dense(params: Array, state: Array, gradient: Array, numbers: Numbers) -> None:
        to = params.dtype.type
        l1, l2 = to(numbers[1]), to(numbers[2])
        if l1 == 0 and l2 == 0:
            loop(params, state, gradient, to(0), to(0), numbers)
        else:
            loop(params, state, gradient, l1, l2, numbers)

    return dense


def _dense_2(step: Callable[..., Any]) -> Kernel:
    @part
    def loop(params: Array, one: Array, two: Array, gradient: Array, l1: Number, l2: Number, numbers: Numbers) -> None:
        scale = params.dtype.type(numbers[0])
        for i in range(params.shape[0]):
            g = _penalised(gradient[i] * scale, params[i], l1, l2)
            params[i], one[i], two[i] = step(params[i], one[i], two[i], g, numbers)

    def dense(params: Array, one: Array, two: Array, gradient: Array, numbers: Numbers) -> None:
        to = params.dtype.type
        l1, l2 = to(numbers[1]), to(numbers[2])
        if l1 == 0 and l2 == 0:
            loop(params, one, two, gradient, to(0), to(0), numbers)
        else:
            loop(params, one, two, gradient, l1, l2, numbers)

    return dense


def _rows_0(step: Callable[..., Any]) -> Kernel:
    @part
    def narrow(params: Array, gradient: Array, index: Array, l1: Number, l2: Number, numbers: Numbers) -> None:
        scale, last = params.dtype.type(numbers[0]), index.shape[0] - 1
        for i in range(index.shape[0]):
            prefetch(params, index[min(i + AHEAD_MAX, last)], 0)
            at = np.uintp(index[i])
            p = params[at, 0]
            params[at, 0] = step(p, _penalised(gradient[i, 0] * scale, p, l1, l2), numbers)

    def rows(params: Array, gradient: Array, index: Array, numbers: Numbers) -> None:
        _check_index(index, params.shape[0])
        to, width, ahead = params.dtype.type, np.uintp(params.shape[1]), _ahead(params)
        line = LINE_BYTES // params.itemsize
        scale, l1, l2 = to(numbers[0]), to(numbers[1]), to(numbers[2])
        if width == 1 and l1 == 0 and l2 == 0:
            narrow(params, gradient, index, to(0), to(0), numbers)
            return
        p, g = params.reshape(params.size), gradient.reshape(gradient.size)
        for i in range(index.shape[0]):
            soon = index[min(i + ahead, index.shape[0] - 1)]
            _send_for(params, soon, line)
            first, given = np.uintp(index[i]) * width, np.uintp(i) * width
            for d in range(width):
                at = first + d
                p[at] = step(p[at], _penalised(g[given + d] * scale, p[at], l1, l2), numbers)

    return rows


def _rows_1(step: Callable[..., Any]) -> Kernel:
    def rows(params: Array, state: Array, gradient: Array, index: Array, numbers: Numbers) -> None:
        _check_index(index, params.shape[0])
        to, width, ahead = params.dtype.type, np.uintp(params.shape[1]), _ahead(params)
        line = LINE_BYTES // params.itemsize
        scale, l1, l2 = to(numbers[0]), to(numbers[1]), to(numbers[2])
        p, s, g = params.reshape(params.size), state.reshape(params.size), gradient.reshape(gradient.size)
        for i in range(index.shape[0]):
            soon = index[min(i + ahead, index.shape[0] - 1)]
            _send_for(params, soon, line)
            _send_for(state, soon, line)
            first, given = np.uintp(index[i]) * width, np.uintp(i) * width
            for d in range(width):
                at = first + d
                p[at], s[at] = step(p[at], s[at], _penalised(g[given + d] * scale, p[at], l1, l2), numbers)

    return rows


def _rows_2(step: Callable[..., Any]) -> Kernel:
    def rows(params: Array, one: Array, two: Array, gradient: Array, index: Array, numbers: Numbers) -> None:
        _check_index(index, params.shape[0])
        to, width, ahead = params.dtype.type, np.uintp(params.shape[1]), _ahead(params)
        line = LINE_BYTES // params.itemsize
        scale, l1, l2 = to(numbers[0]), to(numbers[1]), to(numbers[2])
        p, g = params.reshape(params.size), gradient.reshape(gradient.size)
        s, t = one.reshape(params.size), two.reshape(params.size)
        for i in range(index.shape[0]):
            soon = index[min(i + ahead, index.shape[0] - 1)]
            _send_for(params, soon, line)
            _send_for(one, soon, line)
            _send_for(two, soon, line)
            first, given = np.uintp(index[i]) * width, np.uintp(i) * width
            for d in range(width):
                at = first + d
                g_d = _penalised(g[given + d] * scale, p[at], l1, l2)
                p[at], s[at], t[at] = step(p[at], s[at], t[at], g_d, numbers)

    return rows


_LOOPS = ((_dense_0, _rows_0), (_dense_1, _rows_1), (_dense_2, _rows_2))


def _updates(name: str, states: int, step: Callable[..., Any], numbers: Callable[..., Numbers]) -> list[Kernel]:
    """The dense kernel and the one by rows; `numbers` makes of their numbers what the loops take."""
    made = []
    for loop, called, arrays in zip(_LOOPS[states], (name, f"{name}_rows"), (states + 2, states + 3), strict=True):
        run = loop(step)
        run.__name__ = run.__qualname__ = called  # compiled code goes by this name, in memory and on disk
        made.append(_caller(kernel(run), arrays, numbers))
    return made


def _caller(run: Kernel, arrays: int, numbers: Callable[..., Numbers]) -> Kernel:
    def call(*arguments: Any) -> None:
        run(*arguments[:arrays], numbers(*arguments[arrays:]))

    return call


def _one_number(rate: float, l1: float, l2: float, scale: float) -> Numbers:
    return scale, l1, l2, rate


def _two_numbers(rate: float, other: float, l1: float, l2: float, scale: float) -> Numbers:
    return scale, l1, l2, rate, other


def _rmsprop_numbers(rate: float, decay: float, epsilon: float, l1: float, l2: float, scale: float) -> Numbers:
    return scale, l1, l2, rate, decay, 1 - decay, epsilon


def _adam_numbers(
    rate: float, beta1: float, beta2: float, epsilon: float, step: int, l1: float, l2: float, scale: float
) -> Numbers:
    corrected, root = rate / (1 - beta1**step), (1 - beta2**step) ** 0.5
    return scale, l1, l2, corrected, root, epsilon, beta1, 1 - beta1, beta2, 1 - beta2


def _adamw_numbers(
    rate: float, beta1: float, beta2: float, epsilon: float, weight_decay: float, step: int, scale: float
) -> Numbers:
    return *_adam_numbers(rate, beta1, beta2, epsilon, step, 0.0, 0.0, scale), rate * weight_decay


def _ftrl_numbers(rate: float, beta: float, l1: float, l2: float, scale: float) -> Numbers:
    return scale, 0.0, 0.0, 1 / rate, beta, l1, l2


sgd, sgd_rows = _updates("sgd", 0, _sgd, _one_number)
momentum, momentum_rows = _updates("momentum", 1, _momentum, _two_numbers)
nesterov, nesterov_rows = _updates("nesterov", 1, _nesterov, _two_numbers)
adagrad, adagrad_rows = _updates("adagrad", 1, _adagrad, _two_numbers)
rmsprop, rmsprop_rows = _updates("rmsprop", 1, _rmsprop, _rmsprop_numbers)
adam, adam_rows = _updates("adam", 2, _adam, _adam_numbers)
adamw, adamw_rows = _updates("adamw", 2, _adamw, _adamw_numbers)
ftrl, ftrl_rows = _updates("ftrl", 2, _ftrl, _ftrl_numbers)
