"""Matrix products."""

from __future__ import annotations

from hpcps_kernels.spec import Argument, Spec, out, read


def _gemm(name: str, a: tuple[str, str], b: tuple[str, str], *more: Argument) -> Spec:
    arguments = (out("out", "F", "m", "n"), read("a", "F", *a), read("b", "F", *b), *more)
    return Spec(name, "gemm", arguments, accumulates="F", tolerance=100)


SPECS = (
    _gemm("gemm_nn", ("m", "k"), ("k", "n")),
    _gemm("gemm_nt", ("m", "k"), ("n", "k")),
    _gemm("gemm_tn", ("k", "m"), ("k", "n"), read("kept", "int64", "2")),
)
