"""Dense samples: losses of linear models and their gradients."""

from __future__ import annotations

from hpcps_kernels.spec import Spec, out, read


def _loss_gradient(name: str, labels: str, *classes: str) -> Spec:
    """`classes` is ("K",) for a model with a row of weights for each class, empty for a single output."""
    outputs = classes or ("1",)
    arguments = (
        out("weight_gradient", "F", *classes, "D"),
        out("bias_gradient", "F", *outputs),
        read("samples", "F", "n", "D"),
        read("labels", labels, "n"),
        read("weight", "F", *classes, "D"),
        read("bias", "F", *outputs),
    )
    return Spec(name, "gradient", arguments, accumulates="F; the loss float64", tolerance=200)


def _scores(name: str, *classes: str) -> Spec:
    arguments = (
        out("scores", "F", "n", *classes),
        read("samples", "F", "n", "D"),
        read("weight", "F", *classes, "D"),
        read("bias", "F", *(classes or ("1",))),
    )
    return Spec(name, "gradient", arguments, accumulates="F", tolerance=100)


def _loss(name: str, labels: str, *classes: str) -> Spec:
    arguments = (read("scores", "F", "n", *classes), read("labels", labels, "n"))
    return Spec(name, "gradient", arguments, accumulates="float64", tolerance=8)


SPECS = (
    _loss_gradient("linear_loss_gradient", "F"),
    _loss_gradient("logistic_loss_gradient", "int64"),
    _loss_gradient("softmax_loss_gradient", "int64", "K"),
    _scores("linear_scores"),
    _scores("softmax_scores", "K"),
    _loss("linear_loss", "F"),
    _loss("logistic_loss", "int64"),
    _loss("softmax_loss", "int64", "K"),
)
