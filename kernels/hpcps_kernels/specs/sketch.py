"""How often keys came, counted in fixed memory."""

from __future__ import annotations

from hpcps_kernels.spec import Spec, inout, out, read

SPECS = (
    Spec(
        "sketch_count",
        "sketch",
        (out("counts", "int64", "m"), inout("counters", "uint16", "D", "C"), read("keys", "int64", "m")),
    ),
)
