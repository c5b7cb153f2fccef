"""Losses of scores, and their residuals: the derivatives by the scores."""

from __future__ import annotations

from hpcps_kernels.spec import POINT_LOSSES, Argument, Spec, choice, inout, read, real

SAMPLE_WEIGHT = read("sample_weight", "F", "n?")
POINT = (choice("loss", *POINT_LOSSES), real("delta"))


def _loss(name: str, scores: Argument, labels: str, *scalars: Argument) -> Spec:
    arguments = (scores, read("labels", labels, "n"), SAMPLE_WEIGHT, *scalars)
    return Spec(name, "loss", arguments, accumulates="float64", tolerance=8)


SPECS = (
    _loss("point_residual", inout("scores", "F", "n"), "F", *POINT),
    _loss("point_loss", read("scores", "F", "n"), "F", *POINT),
    _loss("softmax_residual", inout("scores", "F", "n", "K"), "int64"),
    _loss("softmax_loss", read("scores", "F", "n", "K"), "int64"),
)
