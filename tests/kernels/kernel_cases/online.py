from __future__ import annotations

import numpy as np
from hpcps_kernels.cpu.loss import CHUNK
from hpcps_kernels.spec import POINT_LOSSES

from kernel_cases import FLOATS, NOTHING, Case, below
from kernel_cases.loss import point_labels
from kernel_cases.sparse import pointers

SCALARS = {
    "online_sgd": {"learning_rate": 0.03, "l2": 0.02},
    "online_adagrad": {"learning_rate": 0.1, "epsilon": 1e-3, "l2": 0.02},
    "online_ftrl": {"alpha": 0.1, "beta": 0.8, "l1": 0.3, "l2": 0.1},
}
SIZES = [(0, 3, 2, 5), (1, 1, 1, 1), (4, 30, 5, 100), (CHUNK + 5, 90, 40, 900)]  # visits, samples, features, entries


def _state(shape, dtype, rng):
    """Small weights, or pairs of them and positive sums."""
    state = 0.1 * rng.standard_normal(shape)
    if len(state) and (len(shape) == 2 or shape == (2,)):
        state[..., 1] = np.abs(state[..., 1])
    return state


def _case(kernel: str, size, dtype: str, loss: str = "logistic", stored: str = "", left_out=()) -> Case:
    m, n, d, entries = size
    make = {
        "state": _state,
        "bias": _state,
        "weight": _state,
        "indptr": pointers(entries),
        "indices": below(d),
        "labels": point_labels(loss),
        "index": below(n),
    }
    lengths = {"m": m, "n": n, "D": d, "nnz": entries, **dict.fromkeys(left_out, NOTHING)}
    return Case(
        kernel, lengths, {"F": dtype, "V": stored or dtype}, {"loss": loss, "delta": 0.7, **SCALARS[kernel]}, make
    )


def _weights(size: int, dtype: str) -> Case:
    scalars = SCALARS["online_ftrl"]
    return Case("online_ftrl_weights", {"D": size}, {"F": dtype}, scalars, {"state": _state})


CASES = [
    *(_weights(size, dtype) for size in (0, 1, 5, 1001) for dtype in FLOATS),
    *(_case(kernel, size, dtype) for kernel in SCALARS for size in SIZES for dtype in FLOATS),
    *(_case(kernel, SIZES[-1], dtype, loss) for kernel in SCALARS for loss in POINT_LOSSES for dtype in FLOATS),
    *(_case(kernel, SIZES[-1], dtype, left_out=("values",)) for kernel in SCALARS for dtype in FLOATS),
    *(_case(kernel, SIZES[-1], "float32", stored="float64") for kernel in SCALARS),
    *(_case(kernel, SIZES[-1], "float64", stored="float32") for kernel in SCALARS),
]
