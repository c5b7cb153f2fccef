from __future__ import annotations

import numpy as np
from hpcps_kernels.cpu.loss import CHUNK
from hpcps_kernels.spec import POINT_LOSSES

from kernel_cases import FLOATS, NOTHING, Case, below
from kernel_cases.embedding import cuts

SIZES = [(0, 3, 2, 0), (2, 3, 1, 7), (1, 1, 5, 1), (9, 20, 9, 60), (17, 9, 17, 70), (CHUNK + 5, 40, 33, 900)]
EVERYWHERE = ("squared", "logistic")


def small(shape, dtype, rng) -> np.ndarray:
    return 0.2 * rng.standard_normal(shape)


def zero_or_one(shape, dtype, rng) -> np.ndarray:
    return rng.integers(0, 2, shape)


def _case(kernel: str, size: tuple[int, ...], dtype: str, loss: str, left_out: tuple[str, ...]) -> Case:
    n, d, r, entries = size
    lengths = {"n": n, "R": r} | ({"D": d, "nnz": entries} if kernel.startswith("fm") else {"U": d, "I": 2 * d})
    make = {"indptr": cuts(entries), "indices": below(d), "users": below(d), "items": below(2 * d)}
    make |= dict.fromkeys(("table", "user", "item"), small) | {"labels": zero_or_one}
    scalars = {"loss": loss, "delta": 0.7} if loss else {}
    return Case(kernel, lengths | dict.fromkeys(left_out, NOTHING), {"F": dtype}, scalars, make)


CASES = [
    *(
        _case(kernel, size, dtype, "", left_out)
        for kernel in ("fm_scores", "mf_scores")
        for size in SIZES
        for dtype in FLOATS
        for left_out in ((), ("values",))
        if kernel == "fm_scores" or not left_out
    ),
    *(
        _case(kernel, size, dtype, loss, left_out)
        for kernel in ("fm_loss_gradient", "mf_loss_gradient")
        for loss in POINT_LOSSES
        for size in SIZES
        for dtype in FLOATS
        for left_out in (("values", "sample_weight"), ())
        if loss in EVERYWHERE or size[0] == 17
    ),
]
