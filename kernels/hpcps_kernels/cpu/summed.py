"""Optimiser steps whose gradient is a sum: the last addition is made where the sum is used, those before it block by
block in the first-level cache. The arithmetic is update.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpcps_kernels.cpu import update
from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.cpu._memory import aligned
from hpcps_kernels.cpu.update import Kernel, Number, Numbers, _penalised
from hpcps_kernels.interface import Array

BLOCK = 2048  # elements of a sum


@part
def _block(params: Array, gradients: Array, column: int) -> int:
    """How many elements are worked on at a time: all, where one addition is all that there is."""
    if gradients.shape[0] < 2:
        raise ValueError("summed: there are fewer than two gradients")
    if column < 0 or column + params.shape[0] > gradients.shape[1]:
        raise ValueError("summed: the gradients have too few columns")
    return max(1, params.shape[0]) if gradients.shape[0] == 2 else BLOCK


@part
def _but_last(room: Array, gradients: Array, lo: int, hi: int) -> Array:
    """The sum of all rows but the last, in columns lo .. hi - 1."""
    if gradients.shape[0] == 2:
        return gradients[0, lo:hi]
    total = room[: hi - lo]
    _add(total, gradients[0, lo:hi], gradients[1, lo:hi])
    for row in range(2, gradients.shape[0] - 1):
        _add(total, total, gradients[row, lo:hi])
    return total


@part
def _add(out: Array, x: Array, y: Array) -> None:
    for i in range(out.shape[0]):
        out[i] = x[i] + y[i]


def _summed_0(step: Callable[..., Any]) -> Kernel:
    @part
    def loop(params: Array, x: Array, y: Array, l1: Number, l2: Number, numbers: Numbers) -> None:
        scale = params.dtype.type(numbers[0])
        for i in range(params.shape[0]):
            params[i] = step(params[i], _penalised((x[i] + y[i]) * scale, params[i], l1, l2), numbers)

    def summed(params: Array, gradients: Array, column: int, numbers: Numbers) -> None:
        block, to = _block(params, gradients, column), params.dtype.type
        room, l1, l2 = aligned(BLOCK, params), to(numbers[1]), to(numbers[2])
        for lo in range(0, params.shape[0], block):
            hi = min(lo + block, params.shape[0])
            x = _but_last(room, gradients, column + lo, column + hi)
            y = gradients[gradients.shape[0] - 1, column + lo : column + hi]
            if l1 == 0 and l2 == 0:
                loop(params[lo:hi], x, y, to(0), to(0), numbers)
            else:
                loop(params[lo:hi], x, y, l1, l2, numbers)

    return summed


def _summed_1(step: Callable[..., Any]) -> Kernel:
    @part
    def loop(params: Array, state: Array, x: Array, y: Array, l1: Number, l2: Number, numbers: Numbers) -> None:
        scale = params.dtype.type(numbers[0])
        for i in range(params.shape[0]):
            g = _penalised((x[i] + y[i]) * scale, params[i], l1, l2)
            params[i], state[i] = step(params[i], state[i], g, numbers)

    def summed(params: Array, state: Array, gradients: Array, column: int, numbers: Numbers) -> None:
        block, to = _block(params, gradients, column), params.dtype.type
        room, l1, l2 = aligned(BLOCK, params), to(numbers[1]), to(numbers[2])
        for lo in range(0, params.shape[0], block):
            hi = min(lo + block, params.shape[0])
            x = _but_last(room, gradients, column + lo, column + hi)
            y = gradients[gradients.shape[0] - 1, column + lo : column + hi]
            if l1 == 0 and l2 == 0:
                loop(params[lo:hi], state[lo:hi], x, y, to(0), to(0), numbers)
            else:
                loop(params[lo:hi], state[lo:hi], x, y, l1, l2, numbers)

    return summed


def _summed_2(step: Callable[..., Any]) -> Kernel:
    @part
    def loop(
        params: Array, one: Array, two: Array, x: Array, y: Array, l1: Number, l2: Number, numbers: Numbers
    ) -> None:
        scale = params.dtype.type(numbers[0])
        for i in range(params.shape[0]):
            g = _penalised((x[i] + y[i]) * scale, params[i], l1, l2)
            params[i], one[i], two[i] = step(params[i], one[i], two[i], g, numbers)

    def summed(params: Array, one: Array, two: Array, gradients: Array, column: int, numbers: Numbers) -> None:
        block, to = _block(params, gradients, column), params.dtype.type
        room, l1, l2 = aligned(BLOCK, params), to(numbers[1]), to(numbers[2])
        for lo in range(0, params.shape[0], block):
            hi = min(lo + block, params.shape[0])
            x = _but_last(room, gradients, column + lo, column + hi)
            y = gradients[gradients.shape[0] - 1, column + lo : column + hi]
            if l1 == 0 and l2 == 0:
                loop(params[lo:hi], one[lo:hi], two[lo:hi], x, y, to(0), to(0), numbers)
            else:
                loop(params[lo:hi], one[lo:hi], two[lo:hi], x, y, l1, l2, numbers)

    return summed


_LOOPS = (_summed_0, _summed_1, _summed_2)


def _summed(name: str, states: int, step: Callable[..., Any], numbers: Callable[..., Numbers]) -> Kernel:
    run = _LOOPS[states](step)
    run.__name__ = run.__qualname__ = f"{name}_summed"  # compiled code goes by this name, in memory and on disk
    return update._caller(kernel(run), states + 3, numbers)


sgd_summed = _summed("sgd", 0, update._sgd, update._one_number)
momentum_summed = _summed("momentum", 1, update._momentum, update._two_numbers)
nesterov_summed = _summed("nesterov", 1, update._nesterov, update._two_numbers)
adagrad_summed = _summed("adagrad", 1, update._adagrad, update._two_numbers)
rmsprop_summed = _summed("rmsprop", 1, update._rmsprop, update._rmsprop_numbers)
adam_summed = _summed("adam", 2, update._adam, update._adam_numbers)
adamw_summed = _summed("adamw", 2, update._adamw, update._adamw_numbers)
ftrl_summed = _summed("ftrl", 2, update._ftrl, update._ftrl_numbers)
