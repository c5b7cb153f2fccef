"""Copies for others."""

from __future__ import annotations

from hpcps_kernels.spec import Spec, out, read

SPECS = (Spec("stream", "stream", (out("out", "F", "n"), read("x", "F", "n"))),)
