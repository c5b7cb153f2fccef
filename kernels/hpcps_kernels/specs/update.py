"""Optimiser steps, over flat buffers and over rows of tables."""

from __future__ import annotations

from hpcps_kernels.spec import Argument, Spec, inout, read, real, whole


def _updates(name: str, states: tuple[str, ...], *scalars: Argument) -> tuple[Spec, Spec]:
    """The dense kernel and the one by rows."""
    written, numbers = ("params", *states), (*scalars, real("gradient_scale"))
    dense = (*(inout(w, "F", "n") for w in written), read("gradient", "F", "n"))
    tables = (inout(w, "F", "N", "W") for w in written)
    rows = (*tables, read("gradient", "F", "k", "W"), read("index", "int64", "k"))
    return (
        Spec(name, "update", (*dense, *numbers), splits="n"),
        Spec(f"{name}_rows", "update", (*rows, *numbers), splits="k"),
    )


_RATE, _PENALTY = real("learning_rate"), (real("l1"), real("l2"))
_ADAM = tuple(map(real, ("learning_rate", "beta1", "beta2", "epsilon")))

SPECS = (
    *_updates("sgd", (), _RATE, *_PENALTY),
    *_updates("momentum", ("velocity",), _RATE, real("momentum"), *_PENALTY),
    *_updates("nesterov", ("velocity",), _RATE, real("momentum"), *_PENALTY),
    *_updates("adagrad", ("accumulator",), _RATE, real("epsilon"), *_PENALTY),
    *_updates("rmsprop", ("mean_square",), _RATE, real("decay"), real("epsilon"), *_PENALTY),
    *_updates("adam", ("first", "second"), *_ADAM, whole("step"), *_PENALTY),
    *_updates("adamw", ("first", "second"), *_ADAM, real("weight_decay"), whole("step")),
    *_updates("ftrl", ("z", "squares"), _RATE, real("beta"), *_PENALTY),
)
