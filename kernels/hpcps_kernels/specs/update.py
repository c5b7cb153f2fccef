"""Optimiser steps."""

from __future__ import annotations

from hpcps_kernels.spec import Argument, Spec, inout, read, real, whole


def _update(name: str, states: tuple[str, ...], *scalars: Argument) -> Spec:
    arrays = (inout("params", "F", "n"), *(inout(s, "F", "n") for s in states), read("gradient", "F", "n"))
    return Spec(name, "update", (*arrays, *scalars, real("gradient_scale")), splits="n")


SPECS = (
    _update("sgd", (), real("learning_rate")),
    _update("momentum", ("velocity",), real("learning_rate"), real("momentum")),
    _update("adagrad", ("accumulator",), real("learning_rate"), real("epsilon")),
    _update(
        "adam",
        ("first", "second"),
        *map(real, ("learning_rate", "beta1", "beta2", "epsilon")),
        whole("step"),
    ),
)
