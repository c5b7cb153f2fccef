"""Rows picked by number."""

from __future__ import annotations

from hpcps_kernels.spec import Spec, out, read

_SCALING = (read("index", "int64", "m"), read("shift", "F", "D"), read("scale", "F", "D"))

SPECS = (
    Spec("gather", "rows", (out("out", "F", "m", "D"), read("source", "S", "N", "D"), *_SCALING)),
    Spec(
        "gather_csr",
        "rows",
        (
            out("out", "F", "m", "D"),
            read("indptr", "int64", "N+1"),
            read("indices", "int32", "nnz"),
            read("values", "V", "nnz"),
            *_SCALING,
        ),
    ),
)
