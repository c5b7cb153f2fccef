"""Optimiser steps in place over rows of a table whose state lies beside them: one place in memory a row.

A table is (N, P), P = (1 + S) W for an optimiser with S states: a row is W parameters, then W numbers of each state, in
the order of the kernels by rows. NAME_packed does to the rows `index` (k,) int64, distinct, with gradient (k, W) what
NAME_rows does to params and states apart, to the last bit. Raises ValueError for another P, IndexError for an index
outside 0..N-1; nothing is written then. SGD has no state: sgd_rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpcps_kernels.interface import Array
from hpcps_kernels.reference import update


def _packed(rows: Callable[..., None], name: str, states: int) -> Callable[..., None]:
    def packed(table: Array, gradient: Array, index: Array, *numbers: Any) -> None:
        width = gradient.shape[1]
        if table.shape[1] != (1 + states) * width:
            raise ValueError(f"packed: a row is not {1 + states} times as wide as the gradient")
        rows(*[table[:, i * width : (i + 1) * width] for i in range(1 + states)], gradient, index, *numbers)

    packed.__doc__ = f"`{name}_rows` on rows that hold {states} states beside their parameters: table (N, P)."
    return packed


momentum_packed = _packed(update.momentum_rows, "momentum", 1)
nesterov_packed = _packed(update.nesterov_rows, "nesterov", 1)
adagrad_packed = _packed(update.adagrad_rows, "adagrad", 1)
rmsprop_packed = _packed(update.rmsprop_rows, "rmsprop", 1)
adam_packed = _packed(update.adam_rows, "adam", 2)
adamw_packed = _packed(update.adamw_rows, "adamw", 2)
ftrl_packed = _packed(update.ftrl_rows, "ftrl", 2)
