"""Optimiser steps over rows of a table whose state lies beside them: the kernel by rows, told where states begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpcps_kernels.gpu.update import NUMBERS, update_rows


def _packed(rule: str) -> Callable[..., None]:
    states, numbers = NUMBERS[rule]

    def packed(table: Any, gradient: Any, index: Any, *given: Any) -> None:
        (count, pitch), width = table.shape, gradient.shape[1]
        if pitch != (1 + states) * width:
            raise ValueError(f"packed: a row is not {1 + states} times as wide as the gradient")
        flat = table.reshape(-1)
        parts = [flat[i * width :] for i in range(1 + states)]
        update_rows(parts, pitch, count, gradient, index, rule, numbers(*given))

    return packed


momentum_packed = _packed("Momentum")
nesterov_packed = _packed("Nesterov")
adagrad_packed = _packed("Adagrad")
rmsprop_packed = _packed("Rmsprop")
adam_packed = _packed("Adam")
adamw_packed = _packed("Adamw")
ftrl_packed = _packed("Ftrl")
