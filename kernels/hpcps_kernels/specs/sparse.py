"""Samples as compressed sparse rows: scores of linear models, the gradients of their losses, rows picked by number."""

from __future__ import annotations

from hpcps_kernels.spec import Argument, Spec, out, read, whole
from hpcps_kernels.specs.loss import POINT, SAMPLE_WEIGHT

POINTERS, COLUMNS = read("indptr", "int64", "n+1"), read("indices", "int32", "nnz")
ROWS = (POINTERS, COLUMNS, read("values", "F", "nnz?"))


def _model(*classes: str) -> tuple[Argument, Argument]:
    return read("weight", "F", "D", *classes), read("bias", "F", *(classes or ("1",)))


def _scores(name: str, *classes: str) -> Spec:
    arguments = (out("scores", "F", "n", *classes), *ROWS, *_model(*classes))
    return Spec(name, "sparse", arguments, accumulates="F", tolerance=100)


def _loss_gradient(name: str, labels: str, classes: tuple[str, ...], *scalars: Argument) -> Spec:
    arguments = (
        out("weight_gradient", "F", "D", *classes),
        out("bias_gradient", "F", *(classes or ("1",))),
        *ROWS,
        read("labels", labels, "n"),
        SAMPLE_WEIGHT,
        *_model(*classes),
        *scalars,
    )
    return Spec(name, "sparse", arguments, accumulates="F; the loss float64", tolerance=200)


SPECS = (
    _scores("csr_scores"),
    _loss_gradient("csr_loss_gradient", "F", (), *POINT),
    _scores("csr_softmax_scores", "K"),
    _loss_gradient("csr_softmax_loss_gradient", "int64", ("K",)),
    Spec(
        "csr_take",
        "sparse",
        (
            out("indptr_out", "int64", "m+1"),
            out("indices_out", "int32", "e"),
            out("values_out", "F", "e?"),
            read("indptr", "int64", "N+1"),
            COLUMNS,
            read("values", "V", "nnz?"),
            read("index", "int64", "m"),
            read("scale", "F", "D?"),
            whole("columns"),
        ),
    ),
)
