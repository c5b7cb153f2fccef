"""Gradients of several grains of a batch in one call, added in tree order."""

from __future__ import annotations

from hpcps_kernels.spec import Argument, Spec, inout, out, read, whole
from hpcps_kernels.specs.loss import POINT, SAMPLE_WEIGHT

_GRAINS = (read("bounds", "int64", "G+1"), read("adds", "int64", "G"))


def _linear(name: str, labels: str, classes: tuple[str, ...], *scalars: Argument) -> Spec:
    arguments = (
        inout("stack", "F", "T", "N"),
        out("losses", "float64", "G"),
        read("samples", "X", "n", "D"),
        read("labels", labels, "n"),
        SAMPLE_WEIGHT,
        read("weight", "F", *classes, "D"),
        read("bias", "F", *(classes or ("1",))),
        *_GRAINS,
        *scalars,
    )
    return Spec(name, "grain", arguments, accumulates="F; the losses float64", tolerance=200)


SPECS = (
    _linear("dense_grains", "F", (), *POINT),
    _linear("softmax_grains", "int64", ("K",)),
    Spec(
        "layer_grains",
        "grain",
        (
            inout("stack", "F", "T", "N"),
            read("delta", "F", "n", "H"),
            read("x", "F", "n", "D"),
            *_GRAINS,
            whole("at"),
        ),
        accumulates="F",
        tolerance=100,
    ),
)
