"""Text that is data."""

from __future__ import annotations

from hpcps_kernels.spec import Argument, Spec, inout, out, read, whole

SPECS = (
    Spec(
        "parse_libsvm",
        "text",
        (read("data", "uint8", "bytes"), Argument("zero_based", "flag"), Argument("dtype", "float dtype")),
        tolerance=2,
    ),
    Spec(
        "index_lines",
        "text",
        (
            out("offsets", "int64", "k"),
            out("numbers", "int64", "k"),
            inout("state", "int64", "8"),
            read("data", "uint8", "bytes"),
            whole("comment"),
            whole("every"),
        ),
    ),
    Spec(
        "find_lines",
        "text",
        (
            out("begins", "int64", "m"),
            out("ends", "int64", "m"),
            out("numbers", "int64", "m"),
            read("data", "uint8", "bytes"),
            whole("comment"),
        ),
    ),
    Spec(
        "join_spans",
        "text",
        (
            out("out", "uint8", "n"),
            read("data", "uint8", "bytes"),
            read("begins", "int64", "m"),
            read("ends", "int64", "m"),
        ),
    ),
    Spec(
        "split_fields",
        "text",
        (
            out("text", "uint8", "bytes"),
            out("offsets", "int64", "k+1"),
            read("data", "uint8", "bytes"),
            whole("delimiter"),
            whole("columns"),
        ),
    ),
)
