"""Layers of a network: what follows the matrix product, forward and backward."""

from __future__ import annotations

from typing import Any

from hpcps_kernels.gpu._launch import FLOATS, THREADS, Launch, one_each, strides
from hpcps_kernels.gpu.reduce import ColumnGrid, by_columns

BIAS_ACTIVATION = Launch(
    "layer", "bias_activation", "T *, T *, const T *, i64, i64, i64", strides(4 * THREADS), {"T": FLOATS}
)
ACTIVATION_GRADIENT = Launch(
    "layer",
    "activation_gradient",
    "T *, T *, const T *, const T *, i64, i64, i64, i64, i64",
    one_each,
    {"T": FLOATS},
)


def bias_activation(out: Any, z: Any, bias: Any, activation: int) -> None:
    BIAS_ACTIVATION(z.size, out, z, bias, *z.shape, activation, T=z.dtype)


def activation_gradient(delta: Any, bias_gradient: Any, z: Any, out: Any, activation: int) -> None:
    def launch(grid: ColumnGrid, sums: Any) -> None:
        ACTIVATION_GRADIENT(
            grid.blocks, delta, sums, z, out, *z.shape, grid.lanes, grid.chunk, activation, T=z.dtype
        )  # fmt: skip

    n, units = z.shape
    by_columns(bias_gradient, n, units, launch)
