"""Stores past the caches (non-temporal ones), of whole vectors."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hpcps_kernels.cpu._vectors import FEATURES, VECTOR_BYTES, Value


def store_past(builder: Any, value: Value, pointer: Value) -> None:
    """Build the store of a vector to where a vector begins in memory."""
    stored = builder.store(value, pointer, align=VECTOR_BYTES)
    past = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
    stored.set_metadata("nontemporal", past)


def _fence(typing_context: Any) -> Any:
    """What was stored, in whatever way, is seen before what will be."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if FEATURES.get("sse2"):
            kind = ir.FunctionType(ir.VoidType(), [])
            function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
                builder.module, kind, "llvm.x86.sse.sfence"
            )
            builder.call(function, [])
        else:
            builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


settle: Any = intrinsic(_fence)
