"""Fewer bytes for the wire: half precision, 8 bits, the largest elements."""

from __future__ import annotations

from hpcps_kernels.spec import Argument, Spec, choice, inout, out, read, whole


def _cast(name: str, to: str, of: str) -> Spec:
    return Spec(name, "codec", (out("out", to, "n"), read("x", of, "n")), splits="n")


def _quantize(name: str, *more: Argument) -> Spec:
    written = (out("codes", "int8", "n"), out("scales", "float32", "blocks"), *more)
    numbers = (whole("block"), choice("rounding", "nearest", "stochastic"), whole("seed"), whole("counter"))
    return Spec(name, "codec", (*written, read("x", "float32", "n"), *numbers))


SPECS = (
    _cast("to_bfloat16", "uint16", "float32"),
    _cast("from_bfloat16", "float32", "uint16"),
    _cast("to_float16", "uint16", "float32"),
    _cast("from_float16", "float32", "uint16"),
    _quantize("quantize_int8"),
    _quantize("quantize_int8_feedback", inout("residual", "float32", "n")),
    Spec(
        "dequantize_int8",
        "codec",
        (out("out", "float32", "n"), read("codes", "int8", "n"), read("scales", "float32", "blocks"), whole("block")),
    ),
    Spec(
        "dequantize_add_int8",
        "codec",
        (inout("out", "float32", "n"), read("codes", "int8", "n"), read("scales", "float32", "blocks"), whole("block")),
    ),
    Spec(
        "top_k",
        "codec",
        (out("index", "int64", "k"), out("values", "F", "k"), inout("residual", "F", "n"), read("gradient", "F", "n")),
    ),
)
