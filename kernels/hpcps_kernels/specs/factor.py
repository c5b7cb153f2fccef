"""Models whose features meet in pairs."""

from __future__ import annotations

from hpcps_kernels.spec import POINT_LOSSES, Argument, Spec, choice, out, read, real

ENTRIES = (read("indptr", "int64", "n+1"), read("indices", "int32", "nnz"), read("values", "F", "nnz?"))
PAIRS = (read("users", "int32", "n"), read("items", "int32", "n"))
TABLE, USER, ITEM, BIAS = (
    read("table", "F", "D", "R"),
    read("user", "F", "U", "R"),
    read("item", "F", "I", "R"),
    read("bias", "F", "1"),
)
LABELS = (read("labels", "F", "n"), read("sample_weight", "F", "n?"))
LOSS = (choice("loss", *POINT_LOSSES), real("delta"))


def _scores(name: str, *arguments: Argument) -> Spec:
    return Spec(name, "factor", (out("scores", "F", "n"), *arguments), accumulates="F", tolerance=100)


def _loss_gradient(name: str, *arguments: Argument) -> Spec:
    return Spec(name, "factor", (*arguments, *LOSS), accumulates="F; the loss float64", tolerance=200)


SPECS = (
    _scores("fm_scores", *ENTRIES, TABLE, BIAS),
    _loss_gradient(
        "fm_loss_gradient",
        out("table_gradient", "F", "D", "R"),
        out("bias_gradient", "F", "1"),
        *ENTRIES,
        *LABELS,
        TABLE,
        BIAS,
    ),
    _scores("mf_scores", *PAIRS, USER, ITEM, BIAS),
    _loss_gradient(
        "mf_loss_gradient",
        out("user_gradient", "F", "U", "R"),
        out("item_gradient", "F", "I", "R"),
        out("bias_gradient", "F", "1"),
        *PAIRS,
        *LABELS,
        USER,
        ITEM,
        BIAS,
    ),
)
