"""Numbers drawn by key: the first values of a table's rows."""

from __future__ import annotations

from hpcps_kernels.spec import Spec, out, read, real, whole

SPECS = (
    Spec(
        "init_rows",
        "draw",
        (out("out", "F", "k", "W"), read("keys", "int64", "k"), whole("seed"), whole("zeros"), real("scale")),
        splits="k",
    ),
)
