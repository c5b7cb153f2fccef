"""Optimiser steps in place whose gradient is the sum of several: they are read where they lie, and no sum is written.

Params and states are (n,); ``gradients`` (P, N), of which there are two or more, hold theirs in n columns from
``column`` on. These are added from the first row to the last, and then NAME_summed does what NAME does, to the last
bit. Raises ValueError for gradients or columns that are not there; nothing is written then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpcps_kernels.reference import update


def _summed(dense: Callable[..., None], written: int) -> Callable[..., None]:
    def summed(*arguments: Any) -> None:
        states, (gradients, column, *numbers) = arguments[:written], arguments[written:]
        stop = column + len(states[0])
        if len(gradients) < 2:
            raise ValueError("summed: there are fewer than two gradients")
        if column < 0 or stop > gradients.shape[1]:
            raise ValueError("summed: the gradients have too few columns")
        total = gradients[0, column:stop].copy()
        for gradient in gradients[1:, column:stop]:
            total += gradient
        dense(*states, total, *numbers)

    summed.__doc__ = f"`{dense.__name__}` with the sum of gradients (P, N), from ``column`` on."
    return summed


sgd_summed = _summed(update.sgd, 1)
momentum_summed = _summed(update.momentum, 2)
nesterov_summed = _summed(update.nesterov, 2)
adagrad_summed = _summed(update.adagrad, 2)
rmsprop_summed = _summed(update.rmsprop, 2)
adam_summed = _summed(update.adam, 3)
adamw_summed = _summed(update.adamw, 3)
ftrl_summed = _summed(update.ftrl, 3)
