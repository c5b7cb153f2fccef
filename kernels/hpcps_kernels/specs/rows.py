"""Rows picked by number, and the numbers of keys."""

from __future__ import annotations

from hpcps_kernels.spec import Spec, inout, out, read, real

_SCALING = (read("index", "int64", "m"), read("shift", "F", "D"), read("scale", "F", "D"))
_INDEX = read("index", "int64", "m")

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
    Spec("gather_rows", "rows", (out("out", "A", "m", "W"), read("table", "A", "N", "W"), _INDEX), splits="m"),
    Spec("gather_leading", "rows", (out("out", "A", "m", "W"), read("table", "A", "N", "P"), _INDEX), splits="m"),
    Spec("scatter_rows", "rows", (inout("table", "A", "N", "W"), read("rows", "A", "m", "W"), _INDEX)),
    Spec("scatter_add_rows", "rows", (inout("table", "A", "N", "W"), read("rows", "A", "m", "W"), _INDEX), "A"),
    Spec(
        "scatter_add_rows_fixed",
        "rows",
        (inout("table", "int64", "N", "W"), read("rows", "F", "m", "W"), _INDEX, real("scale")),
        "int64",
    ),
    Spec(
        "localize",
        "rows",
        (out("keys", "int64", "n"), out("inverse", "int32", "n"), read("x", "I", "n"), inout("slots", "int32", "R")),
    ),
    Spec("unique", "rows", (out("keys", "int64", "n"), out("inverse", "int32", "n"), read("x", "int64", "n"))),
)
