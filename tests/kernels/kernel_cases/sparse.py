from __future__ import annotations

import numpy as np
from hpcps_kernels.cpu.sparse import BLOCK, NEAR_BYTES
from hpcps_kernels.spec import POINT_LOSSES

from kernel_cases import FLOATS, NOTHING, Case, below, positive
from kernel_cases.loss import UNWEIGHTED, point_labels

SIZES = [  # samples, features, entries, classes
    (0, 3, 0, 2),
    (1, 1, 1, 1),
    (5, 4, 0, 3),
    (BLOCK, 40, 700, 4),
    (BLOCK + 1, 7, 300, 17),
    (2 * BLOCK + 9, 30, 2000, 10),
]
FAR = (BLOCK + 9, NEAR_BYTES // 4 + 5, 500, 2)


def pointers(entries: int):
    """Bounds of rows of many lengths, among them none, that share the entries."""

    def make(shape, dtype, rng):
        cuts = np.sort(rng.integers(0, entries + 1, shape))
        cuts[0], cuts[-1] = 0, entries
        return cuts

    return make


def _case(kernel: str, size, dtype: str, loss: str = "logistic", left_out=()) -> Case:
    n, d, entries, k = size
    softmax = kernel.startswith("csr_softmax")
    make = {
        "indptr": pointers(entries if n else 0),
        "indices": below(d),
        "labels": below(k) if softmax else point_labels(loss),
        "sample_weight": positive,
        "weight": lambda shape, dtype, rng: 0.3 * rng.standard_normal(shape),
    }
    lengths = {"n": n, "D": d, "nnz": entries, **({"K": k} if softmax else {}), **dict.fromkeys(left_out, NOTHING)}
    return Case(kernel, lengths, {"F": dtype}, {"loss": loss, "delta": 0.7}, make)


def _take(m: int, n: int, d: int, each: int, stored: str, dtype: str, left_out=()) -> Case:
    make = {
        "indptr": lambda shape, dtype, rng: each * np.arange(n + 1),
        "indices": below(d),
        "index": below(n),
    }
    lengths = {"m": m, "N": n, "D": d, "nnz": each * n, "e": each * m, **dict.fromkeys(left_out, NOTHING)}
    return Case("csr_take", lengths, {"F": dtype, "V": stored}, {"columns": d}, make)


MODELS = ("csr_scores", "csr_loss_gradient", "csr_softmax_scores", "csr_softmax_loss_gradient")
CASES = [
    *(_case(kernel, size, dtype) for kernel in MODELS for size in SIZES for dtype in FLOATS),
    *(_case(kernel, FAR, "float32") for kernel in MODELS),
    *(_case(kernel, SIZES[-1], dtype, left_out=("values",)) for kernel in MODELS for dtype in FLOATS),
    *(
        _case(kernel, SIZES[-1], dtype, left_out=UNWEIGHTED)
        for kernel in ("csr_loss_gradient", "csr_softmax_loss_gradient")
        for dtype in FLOATS
    ),
    *(_case("csr_loss_gradient", SIZES[-1], dtype, loss) for loss in POINT_LOSSES for dtype in FLOATS),
    *(
        _take(33, 20, 50, 39, "float32", "float64", left_out)
        for left_out in (
            ("values",),
            ("scale",),
            ("values", "scale"),
            ("values_out",),
            ("values_out", "values", "scale"),
        )
    ),
    *(
        _take(*size, stored, dtype)
        for size in ((0, 3, 2, 1), (1, 1, 1, 1), (9, 4, 5, 0), (33, 20, 50, 39))
        for stored in FLOATS
        for dtype in FLOATS
    ),
]
