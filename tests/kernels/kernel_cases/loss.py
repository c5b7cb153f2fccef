from __future__ import annotations

from hpcps_kernels.cpu.loss import CHUNK
from hpcps_kernels.spec import POINT_LOSSES

from kernel_cases import FLOATS, NOTHING, Case, below, positive

BINARY = ("logistic", "hinge", "squared_hinge")
UNWEIGHTED = {"sample_weight": NOTHING}


def point_labels(loss: str):
    """What makes labels of any size that the loss takes."""
    if loss in BINARY:
        return below(2)
    return below(5) if loss == "poisson" else lambda shape, dtype, rng: rng.standard_normal(shape)


def _points(kernel: str):
    for loss in POINT_LOSSES:
        make = {"labels": point_labels(loss), "sample_weight": positive}
        for n in (0, 1, 7, CHUNK, 2 * CHUNK + 9) if loss == "logistic" else (CHUNK + 9,):
            for dtype in FLOATS:
                for weighted in ({}, UNWEIGHTED):
                    scalars = {"loss": loss, "delta": 0.7}
                    yield Case(kernel, {"n": n, **weighted}, {"F": dtype}, scalars, make)


def _softmax(kernel: str):
    for n, k in ((0, 3), (1, 1), (5, 2), (CHUNK, 4), (2 * CHUNK + 9, 11), (3, 1000)):
        make = {
            "scores": lambda shape, dtype, rng: 4 * rng.standard_normal(shape),
            "labels": below(k),
            "sample_weight": positive,
        }
        for dtype in FLOATS:
            for weighted in ({}, UNWEIGHTED):
                yield Case(kernel, {"n": n, "K": k, **weighted}, {"F": dtype}, make=make)


CASES = [
    *(case for kernel in ("point_residual", "point_loss") for case in _points(kernel)),
    *(case for kernel in ("softmax_residual", "softmax_loss") for case in _softmax(kernel)),
]
