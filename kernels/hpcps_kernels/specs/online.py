"""Linear models that learn from sparse samples one after the other."""

from __future__ import annotations

from hpcps_kernels.spec import Spec, inout, out, read, real
from hpcps_kernels.specs.loss import POINT
from hpcps_kernels.specs.sparse import COLUMNS, POINTERS


def _online(name: str, state: str, values: tuple[str, ...], *scalars: str) -> Spec:
    """`values` is ("2",) where the state of a feature is a pair."""
    arguments = (
        inout(state, "F", "D", *values),
        inout("bias", "F", *(values or ("1",))),
        POINTERS,
        COLUMNS,
        read("values", "V", "nnz?"),
        read("labels", "F", "n"),
        read("index", "int64", "m"),
        *POINT,
        *map(real, scalars),
    )
    return Spec(name, "online", arguments, accumulates="F; the loss float64", tolerance=1000)


SPECS = (
    _online("online_sgd", "weight", (), "learning_rate", "l2"),
    _online("online_adagrad", "state", ("2",), "learning_rate", "epsilon", "l2"),
    _online("online_ftrl", "state", ("2",), "alpha", "beta", "l1", "l2"),
    Spec(
        "online_ftrl_weights",
        "online",
        (out("weight", "F", "D"), read("state", "F", "D", "2"), *map(real, ("alpha", "beta", "l1", "l2"))),
        splits="D",
    ),
)
