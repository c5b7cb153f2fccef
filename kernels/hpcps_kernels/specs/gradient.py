"""Dense samples: scores of linear models, and the gradients of their losses."""

from __future__ import annotations

from hpcps_kernels.spec import Argument, Spec, out, read
from hpcps_kernels.specs.loss import POINT, SAMPLE_WEIGHT


def _loss_gradient(name: str, labels: str, classes: tuple[str, ...], *scalars: Argument) -> Spec:
    """`classes` is ("K",) for a model with a row of weights for each class, empty for a single output."""
    outputs = classes or ("1",)
    arguments = (
        out("weight_gradient", "F", *classes, "D"),
        out("bias_gradient", "F", *outputs),
        read("samples", "X", "n", "D"),
        read("labels", labels, "n"),
        SAMPLE_WEIGHT,
        read("weight", "F", *classes, "D"),
        read("bias", "F", *outputs),
        *scalars,
    )
    return Spec(name, "gradient", arguments, accumulates="F; the loss float64", tolerance=200)


def _scores(name: str, *classes: str) -> Spec:
    arguments = (
        out("scores", "F", "n", *classes),
        read("samples", "X", "n", "D"),
        read("weight", "F", *classes, "D"),
        read("bias", "F", *(classes or ("1",))),
    )
    return Spec(name, "gradient", arguments, accumulates="F", tolerance=100)


SPECS = (
    _loss_gradient("dense_loss_gradient", "F", (), *POINT),
    _loss_gradient("softmax_loss_gradient", "int64", ("K",)),
    _scores("dense_scores"),
    _scores("softmax_scores", "K"),
)
