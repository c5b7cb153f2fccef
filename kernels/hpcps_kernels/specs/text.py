"""Text that is data."""

from __future__ import annotations

from hpcps_kernels.spec import Argument, Spec, read

SPECS = (
    Spec(
        "parse_libsvm",
        "text",
        (read("data", "uint8", "bytes"), Argument("zero_based", "flag"), Argument("dtype", "float dtype")),
        tolerance=2,
    ),
)
