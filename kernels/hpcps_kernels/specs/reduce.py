"""Sums, products and maxima of flat buffers."""

from __future__ import annotations

from hpcps_kernels.spec import Spec, inout, out, read, real

SPECS = (
    Spec("add_into", "reduce", (inout("out", "A", "n"), read("x", "A", "n")), splits="n"),
    Spec("sum_into", "reduce", (out("out", "A", "n"), read("xs", "A", "P", "n")), "A"),
    Spec(
        "sum_tree",
        "reduce",
        (out("out", "A", "M", "n"), read("xs", "A", "R", "n"), read("rows", "int64", "P"), read("adds", "int64", "P")),
        "A",
    ),
    Spec("axpy", "reduce", (inout("out", "F", "n"), read("x", "F", "n"), real("a")), splits="n"),
    Spec("dot", "reduce", (read("x", "F", "n"), read("y", "F", "n")), "float64", order_on_gpu=100),
    Spec("square_norm", "reduce", (read("x", "F", "n"),), "float64", order_on_gpu=100),
    Spec("max_abs", "reduce", (read("x", "F", "n"),)),
    Spec("all_finite", "reduce", (read("x", "F", "n"),)),
    Spec("add_fixed", "reduce", (inout("out", "int64", "n"), read("x", "F", "n"), real("scale")), "int64", splits="n"),
    Spec("from_fixed", "reduce", (out("out", "F", "n"), read("x", "int64", "n"), real("scale")), splits="n"),
)
