"""Layers of a network: bias and activation after a matrix product, and the way back."""

from __future__ import annotations

from hpcps_kernels.spec import ACTIVATIONS, Argument, Spec, choice, inout, out, read


def _layer(name: str, accumulates: str, tolerance: float, *arrays: Argument) -> Spec:
    arguments = (*arrays, choice("activation", *ACTIVATIONS))
    return Spec(name, "layer", arguments, accumulates=accumulates, tolerance=tolerance)


SPECS = (
    _layer(
        "bias_activation",
        "",
        4,
        out("out", "F", "n", "H"),
        inout("z", "F", "n", "H"),
        read("bias", "F", "H"),
    ),
    _layer(
        "activation_gradient",
        "F",
        100,
        inout("delta", "F", "n", "H"),
        out("bias_gradient", "F", "H"),
        read("z", "F", "n", "H"),
        read("out", "F", "n", "H"),
    ),
)
