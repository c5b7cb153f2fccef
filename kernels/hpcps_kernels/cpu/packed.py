"""Optimiser steps over rows whose state lies beside them: the arithmetic is update.py's.

Rows picked at random cost a walk through page tables and a cache miss each; here a row and its state cost one of both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpcps_kernels.cpu import update
from hpcps_kernels.cpu._jit import kernel
from hpcps_kernels.cpu.update import LINE_BYTES, Kernel, Numbers, _ahead, _check_index, _penalised, _send_for
from hpcps_kernels.interface import Array


def _packed_1(step: Callable[..., Any]) -> Kernel:
    def packed(table: Array, gradient: Array, index: Array, numbers: Numbers) -> None:
        if table.shape[1] != 2 * gradient.shape[1]:
            raise ValueError("packed: a row is not 2 times as wide as the gradient")
        _check_index(index, table.shape[0])
        to, width, stride, ahead = (
            table.dtype.type,
            np.uintp(gradient.shape[1]),
            np.uintp(table.shape[1]),
            _ahead(table),
        )
        line = LINE_BYTES // table.itemsize
        scale, l1, l2 = to(numbers[0]), to(numbers[1]), to(numbers[2])
        p, g = table.reshape(table.size), gradient.reshape(gradient.size)
        for i in range(index.shape[0]):
            _send_for(table, index[min(i + ahead, index.shape[0] - 1)], line)
            first, given = np.uintp(index[i]) * stride, np.uintp(i) * width
            for d in range(width):
                at = first + d
                s = at + width
                p[at], p[s] = step(p[at], p[s], _penalised(g[given + d] * scale, p[at], l1, l2), numbers)

    return packed


def _packed_2(step: Callable[..., Any]) -> Kernel:
    def packed(table: Array, gradient: Array, index: Array, numbers: Numbers) -> None:
        if table.shape[1] != 3 * gradient.shape[1]:
            raise ValueError("packed: a row is not 3 times as wide as the gradient")
        _check_index(index, table.shape[0])
        to, width, stride, ahead = (
            table.dtype.type,
            np.uintp(gradient.shape[1]),
            np.uintp(table.shape[1]),
            _ahead(table),
        )
        line = LINE_BYTES // table.itemsize
        scale, l1, l2 = to(numbers[0]), to(numbers[1]), to(numbers[2])
        p, g = table.reshape(table.size), gradient.reshape(gradient.size)
        for i in range(index.shape[0]):
            _send_for(table, index[min(i + ahead, index.shape[0] - 1)], line)
            first, given = np.uintp(index[i]) * stride, np.uintp(i) * width
            for d in range(width):
                at = first + d
                s = at + width
                t = s + width
                g_d = _penalised(g[given + d] * scale, p[at], l1, l2)
                p[at], p[s], p[t] = step(p[at], p[s], p[t], g_d, numbers)

    return packed


_ARRAYS = 3
_LOOPS = {1: _packed_1, 2: _packed_2}


def _packed(name: str, states: int, step: Callable[..., Any], numbers: Callable[..., Numbers]) -> Kernel:
    run = _LOOPS[states](step)
    run.__name__ = run.__qualname__ = f"{name}_packed"  # compiled code goes by this name, in memory and on disk
    return update._caller(kernel(run), _ARRAYS, numbers)


momentum_packed = _packed("momentum", 1, update._momentum, update._two_numbers)
nesterov_packed = _packed("nesterov", 1, update._nesterov, update._two_numbers)
adagrad_packed = _packed("adagrad", 1, update._adagrad, update._two_numbers)
rmsprop_packed = _packed("rmsprop", 1, update._rmsprop, update._rmsprop_numbers)
adam_packed = _packed("adam", 2, update._adam, update._adam_numbers)
adamw_packed = _packed("adamw", 2, update._adamw, update._adamw_numbers)
ftrl_packed = _packed("ftrl", 2, update._ftrl, update._ftrl_numbers)
