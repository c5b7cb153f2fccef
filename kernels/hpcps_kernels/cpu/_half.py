"""float32 to 16 bits and back, in loops that become vectors; IEEE halves by the CPU's own instructions."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hpcps_kernels.cpu._jit import inlined

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


def _bits_of_float(typing_context: Any, x: Any) -> Any:
    """The bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


def _float_of_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 of these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


to_half: Any = intrinsic(_to_half)
from_half: Any = intrinsic(_from_half)
bits_of_float: Any = intrinsic(_bits_of_float)
float_of_bits: Any = intrinsic(_float_of_bits)


@inlined
def bfloat16_of(x: float) -> Any:
    """The upper 16 bits of a float32, rounded to nearest, of two the even one; a nan stays one, made quiet."""
    bits = bits_of_float(x)
    upper = bits >> np.uint32(16)
    rounded = (bits + (np.uint32(0x7FFF) + (upper & np.uint32(1)))) >> np.uint32(16)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16((upper | np.uint32(0x40)) if is_nan else rounded)
