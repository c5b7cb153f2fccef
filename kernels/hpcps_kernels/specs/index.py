"""A hash table from int64 keys to row numbers ("slots")."""

from __future__ import annotations

from hpcps_kernels.spec import Spec, inout, out, read, whole

SPECS = (
    Spec("index_clear", "index", (out("table", "int64", "C", "2"),)),
    Spec(
        "index_find",
        "index",
        (out("slots", "int64", "m"), read("table", "int64", "C", "2"), read("keys", "int64", "m")),
        splits="m",
    ),
    Spec(
        "index_insert",
        "index",
        (out("slots", "int64", "m"), inout("table", "int64", "C", "2"), read("keys", "int64", "m"), whole("count")),
    ),
    Spec("index_grow", "index", (out("new", "int64", "C2", "2"), read("table", "int64", "C", "2"))),
)
