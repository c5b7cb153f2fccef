"""Optimiser steps, over flat buffers and over rows of tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpcps_kernels.gpu._launch import FLOATS, THREADS, Launch, strides
from hpcps_kernels.gpu._told import Told

Numbers = tuple[float, ...]  # gradient_scale, l1, l2, then what the rule of update.cu needs
RULES = ("Sgd", "Momentum", "Nesterov", "Adagrad", "Rmsprop", "Adam", "Adamw", "Ftrl")
COUNT = 11  # numbers that kernels take, used or not

_NUMBERS = ", double" * COUNT
_TYPES = {"T": FLOATS, "Rule": RULES}
DENSE = Launch("update", "dense", "T *, T *, T *, const T *, i64" + _NUMBERS, strides(4 * THREADS), _TYPES)
ROWS = Launch(
    "update",
    "rows",
    "T *, T *, T *, i64, const T *, const i64 *, i64, i64, const double *" + _NUMBERS,
    strides(THREADS),
    _TYPES,
)


def update_rows(
    tables: list[Any], pitch: int, count: int, gradient: Any, index: Any, rule: str, numbers: Numbers
) -> None:
    """Row index[i] of flat tables with ``count`` rows, ``pitch`` numbers from one to the next."""
    told = Told()
    told.numbers_below(index, count)
    k, width = gradient.shape
    ROWS(
        gradient.size, *_padded(tables), pitch, gradient, index, k, width, told.array, *_all(numbers),
        T=gradient.dtype, Rule=rule,
    )  # fmt: skip
    told.sum(IndexError(f"{rule.lower()}_rows: an index is outside 0..N-1"))


def _dense(rule: str, arrays: int, numbers: Callable[..., Numbers]) -> Callable[..., None]:
    def dense(*arguments: Any) -> None:
        *tables, gradient = arguments[:arrays]
        n = gradient.size
        given = _all(numbers(*arguments[arrays:]))
        DENSE(n, *_padded(tables), gradient, n, *given, T=gradient.dtype, Rule=rule)

    return dense


def _rows(rule: str, arrays: int, numbers: Callable[..., Numbers]) -> Callable[..., None]:
    def rows(*arguments: Any) -> None:
        *tables, gradient = arguments[:arrays]
        count, width = tables[0].shape
        update_rows(tables, width, count, gradient, arguments[arrays], rule, numbers(*arguments[arrays + 1 :]))

    return rows


def _padded(tables: list[Any]) -> list[Any]:
    """Parameters and two states: the parameters again for those that a rule has not, which are not looked at."""
    return (tables + tables[:1] * 2)[:3]


def _all(numbers: Numbers) -> list[float]:
    return [float(number) for number in numbers] + [0.0] * (COUNT - len(numbers))


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


NUMBERS: dict[str, tuple[int, Callable[..., Numbers]]] = {  # states of a rule, and its numbers of a call's
    "Sgd": (0, _one_number),
    "Momentum": (1, _two_numbers),
    "Nesterov": (1, _two_numbers),
    "Adagrad": (1, _two_numbers),
    "Rmsprop": (1, _rmsprop_numbers),
    "Adam": (2, _adam_numbers),
    "Adamw": (2, _adamw_numbers),
    "Ftrl": (2, _ftrl_numbers),
}


def _updates(rule: str) -> tuple[Callable[..., None], Callable[..., None]]:
    states, numbers = NUMBERS[rule]
    return _dense(rule, states + 2, numbers), _rows(rule, states + 2, numbers)


sgd, sgd_rows = _updates("Sgd")
momentum, momentum_rows = _updates("Momentum")
nesterov, nesterov_rows = _updates("Nesterov")
adagrad, adagrad_rows = _updates("Adagrad")
rmsprop, rmsprop_rows = _updates("Rmsprop")
adam, adam_rows = _updates("Adam")
adamw, adamw_rows = _updates("Adamw")
ftrl, ftrl_rows = _updates("Ftrl")
