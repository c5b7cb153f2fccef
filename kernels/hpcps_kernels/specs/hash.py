"""Strings and pairs of numbers as keys."""

from __future__ import annotations

from hpcps_kernels.spec import Spec, out, read, whole

_STRINGS = (out("out", "int64", "m"), read("data", "uint8", "bytes"), read("offsets", "int64", "m+1"), whole("seed"))

SPECS = (
    Spec("murmur3_32", "hash", _STRINGS),
    Spec("murmur3_64", "hash", _STRINGS),
    Spec(
        "hash_pairs",
        "hash",
        (
            out("out", "int64", "m"),
            read("fields", "int64", "m"),
            read("values", "int64", "m"),
            whole("seed"),
            whole("bits"),
        ),
        splits="m",
    ),
)
