"""Products of the matrices that a multilayer perceptron has, beside OpenBLAS (NumPy's) and MKL (PyTorch's).

Weights take turns, so that they come from the third-level cache, as in training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from families.case import Array, Case, floats, kernel, numpy, torch, within

SETS = 6
LAYERS = [  # samples, inputs, units
    (256, 784, 512),
    (128, 784, 512),
    (32, 784, 512),
    (128, 512, 256),
    (256, 3072, 1024),
    (256, 4096, 4096),
    (256, 30, 16),
    (1, 784, 512),
]
ROLES = {"gemm_nt": "forward", "gemm_nn": "backward", "gemm_tn": "gradient of weights"}


def cases(quick: bool) -> list[Case]:
    return [_case(form, *layer) for layer in (LAYERS[3:4] if quick else LAYERS) for form in ROLES]


def _case(form: str, n: int, inputs: int, units: int) -> Case:
    def operands() -> list[tuple[Array, ...]]:
        x, delta = floats(0, n, inputs), floats(1, n, units)
        weights = [floats(2 + i, units, inputs) for i in range(SETS)]
        if form == "gemm_nt":
            return [(np.empty((n, units), np.float32), x, weight) for weight in weights]
        if form == "gemm_nn":
            return [(np.empty((n, inputs), np.float32), delta, weight) for weight in weights]
        return [(np.empty_like(weight), delta, x, np.array([0, weight.size])) for weight in weights]

    def of(matmul: Callable[..., Any]) -> Callable[..., Any]:
        def call(out: Any, a: Any, b: Any, *_: Any) -> Any:
            matmul(a.T if form == "gemm_tn" else a, b.T if form == "gemm_nt" else b, out=out)
            return out

        return call

    peers = {
        "NumPy": numpy(operands, of(np.matmul)),
        "torch": torch(operands, lambda library, *arrays: of(library.matmul)(*arrays)),
    }
    size, ours = f"{n} samples, {inputs} to {units}", kernel(form, operands)
    work = 2 * n * inputs * units
    return Case(f"{form}, {ROLES[form]}", size, work, ours, peers, "GFLOP/s", "gemm", 1.0, within(1e-4))
