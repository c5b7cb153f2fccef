"""What every kernel takes: names, roles, dtypes and shapes, how it accumulates and how far twins may differ.

A dtype is a letter of `DTYPES` (the same letter means the same dtype throughout one call) or a dtype's own
name. A shape is a tuple of letters (the same letter means the same length throughout one call), where "N+1"
is one more than N and a number is exactly that.

Destinations come first. An "out" argument is overwritten, an "inout" one is updated in place, an "in" one is
only read. A destination must not share memory with another argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FLOATS = ("float32", "float64")
DTYPES = {
    "F": FLOATS,  # the dtype of the call's parameters
    "V": FLOATS,  # values stored in a dtype of their own
    "A": (*FLOATS, "int64"),  # what can be added
    "S": (*FLOATS, "uint8", "int8", "int16", "int32", "int64"),  # what data sets are stored as
}


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel. A flag is false, a float dtype float32 if left out; both need no shape."""

    name: str
    role: Literal["out", "inout", "in", "float", "int", "flag", "float dtype"]
    dtype: str = ""
    shape: tuple[str, ...] = ()

    @property
    def is_array(self) -> bool:
        return self.role in ("out", "inout", "in")

    @property
    def is_written(self) -> bool:
        return self.role in ("out", "inout")

    @property
    def dtypes(self) -> tuple[str, ...]:
        return DTYPES.get(self.dtype, (self.dtype,))


@dataclass(frozen=True)
class Spec:
    """One kernel. `tolerance` is relative to an output's largest magnitude, in its dtype's epsilons."""

    name: str
    module: str  # the file of each back end that holds it
    arguments: tuple[Argument, ...]
    accumulates: str = ""  # the dtype of running sums; "" where nothing is summed
    tolerance: float = 0.0  # 0: twins agree to the last bit

    @property
    def arrays(self) -> tuple[Argument, ...]:
        return tuple(a for a in self.arguments if a.is_array)

    @property
    def scalars(self) -> tuple[Argument, ...]:
        return tuple(a for a in self.arguments if not a.is_array)


def _out(name: str, dtype: str, *shape: str) -> Argument:
    return Argument(name, "out", dtype, shape)


def _inout(name: str, dtype: str, *shape: str) -> Argument:
    return Argument(name, "inout", dtype, shape)


def _in(name: str, dtype: str, *shape: str) -> Argument:
    return Argument(name, "in", dtype, shape)


def _float(name: str) -> Argument:
    return Argument(name, "float")


def _int(name: str) -> Argument:
    return Argument(name, "int")


def _loss_gradient(name: str, labels: str, *classes: str) -> Spec:
    """`classes` is ("K",) for a model with a row of weights for each class, empty for a single output."""
    outputs = classes or ("1",)
    arguments = (
        _out("weight_gradient", "F", *classes, "D"),
        _out("bias_gradient", "F", *outputs),
        _in("samples", "F", "n", "D"),
        _in("labels", labels, "n"),
        _in("weight", "F", *classes, "D"),
        _in("bias", "F", *outputs),
    )
    return Spec(name, "gradient", arguments, accumulates="F; the loss float64", tolerance=200)


def _scores(name: str, *classes: str) -> Spec:
    arguments = (
        _out("scores", "F", "n", *classes),
        _in("samples", "F", "n", "D"),
        _in("weight", "F", *classes, "D"),
        _in("bias", "F", *(classes or ("1",))),
    )
    return Spec(name, "gradient", arguments, accumulates="F", tolerance=100)


def _loss(name: str, labels: str, *classes: str) -> Spec:
    arguments = (_in("scores", "F", "n", *classes), _in("labels", labels, "n"))
    return Spec(name, "gradient", arguments, accumulates="float64", tolerance=8)


def _update(name: str, states: tuple[str, ...], *scalars: Argument) -> Spec:
    arrays = (_inout("params", "F", "n"), *(_inout(s, "F", "n") for s in states), _in("gradient", "F", "n"))
    return Spec(name, "update", (*arrays, *scalars, _float("gradient_scale")))


SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        _loss_gradient("linear_loss_gradient", "F"),
        _loss_gradient("logistic_loss_gradient", "int64"),
        _loss_gradient("softmax_loss_gradient", "int64", "K"),
        _scores("linear_scores"),
        _scores("softmax_scores", "K"),
        _loss("linear_loss", "F"),
        _loss("logistic_loss", "int64"),
        _loss("softmax_loss", "int64", "K"),
        Spec("add_into", "reduce", (_inout("out", "A", "n"), _in("x", "A", "n"))),
        Spec("max_abs", "reduce", (_in("x", "F", "n"),)),
        Spec("add_fixed", "reduce", (_inout("out", "int64", "n"), _in("x", "F", "n"), _float("scale")), "int64"),
        Spec("from_fixed", "reduce", (_out("out", "F", "n"), _in("x", "int64", "n"), _float("scale"))),
        _update("sgd", (), _float("learning_rate")),
        _update("momentum", ("velocity",), _float("learning_rate"), _float("momentum")),
        _update("adagrad", ("accumulator",), _float("learning_rate"), _float("epsilon")),
        _update(
            "adam",
            ("first", "second"),
            *map(_float, ("learning_rate", "beta1", "beta2", "epsilon")),
            _int("step"),
        ),
        Spec(
            "gather",
            "rows",
            (
                _out("out", "F", "m", "D"),
                _in("source", "S", "N", "D"),
                _in("index", "int64", "m"),
                _in("shift", "F", "D"),
                _in("scale", "F", "D"),
            ),
        ),
        Spec(
            "gather_csr",
            "rows",
            (
                _out("out", "F", "m", "D"),
                _in("indptr", "int64", "N+1"),
                _in("indices", "int32", "nnz"),
                _in("values", "V", "nnz"),
                _in("index", "int64", "m"),
                _in("shift", "F", "D"),
                _in("scale", "F", "D"),
            ),
        ),
        Spec(
            "deposit",
            "meet",
            (
                _out("slot", "A", "n"),
                _inout("flags", "int64", "P", "8"),
                _in("x", "A", "n"),
                _int("rank"),
                _int("round"),
            ),
        ),
        Spec(
            "collect",
            "meet",
            (
                _out("out", "A", "n"),
                _in("slots", "A", "P", "n"),
                _in("flags", "int64", "P", "8"),
                _int("round"),
                _int("spins"),
            ),
            accumulates="A",
        ),
        Spec(
            "parse_libsvm",
            "text",
            (_in("data", "uint8", "bytes"), Argument("zero_based", "flag"), Argument("dtype", "float dtype")),
            tolerance=2,
        ),
    )
}
