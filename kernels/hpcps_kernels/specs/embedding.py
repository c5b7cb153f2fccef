"""Bags of a table's rows."""

from __future__ import annotations

from hpcps_kernels.spec import BAG_MODES, Argument, Spec, choice, out, read


def _bag(name: str, destination: Argument, source: Argument) -> Spec:
    entries = (read("indptr", "int64", "n+1"), read("indices", "int32", "nnz"), read("values", "F", "nnz?"))
    arguments = (destination, *entries, source, choice("mode", *BAG_MODES))
    return Spec(name, "embedding", arguments, accumulates="F", tolerance=50)


SPECS = (
    _bag("bag_forward", out("out", "F", "n", "W"), read("table", "F", "k", "W")),
    _bag("bag_backward", out("table_gradient", "F", "k", "W"), read("gradient", "F", "n", "W")),
)
