"""float32 to IEEE half precision and back, by the CPU's own instructions, in loops that become vectors."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_HALF, _BITS = ir.HalfType(), ir.IntType(16)


def _to_half(typing_context: Any, x: Any) -> Any:
    """The bits of the half that is nearest, of two the even one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], _HALF), _BITS)

    return types.uint16(types.float32), generate


def _from_half(typing_context: Any, bits: Any) -> Any:
    """The float32 of a half's bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], _HALF), ir.FloatType())

    return types.float32(types.uint16), generate


to_half: Any = intrinsic(_to_half)
from_half: Any = intrinsic(_from_half)
