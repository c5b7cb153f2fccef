"""Many bytes of text at once: LLVM does not vectorise a loop that ends early."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hpcps_kernels.cpu._jit import part
from hpcps_kernels.interface import Array

STRIDE = 64


def _first_match(typing_context: Any, data: Any, at: Any, byte: Any) -> Any:
    """How far behind `at` the first such byte is; STRIDE where the next STRIDE bytes, which must exist, have none."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        shape = ir.VectorType(ir.IntType(8), STRIDE)
        place = builder.bitcast(builder.gep(array.data, [arguments[1]]), shape.as_pointer())
        text = builder.load(place, align=1)
        single = builder.insert_element(ir.Constant(shape, ir.Undefined), arguments[2], ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), STRIDE), [0] * STRIDE)
        wanted = builder.shuffle_vector(single, single, zeros)
        mask = builder.bitcast(builder.icmp_unsigned("==", text, wanted), ir.IntType(64))
        return builder.cttz(mask, ir.IntType(1)(0))

    return types.int64(data, types.intp, types.uint8), generate


first_match: Any = intrinsic(_first_match)


@part
def find_byte(data: Array, at: int, byte: int) -> int:
    """Where the first such byte from `at` on is; len(data) where there is none."""
    end = data.shape[0]
    while at + STRIDE <= end:
        step = first_match(data, at, byte)
        at += step
        if step < STRIDE:
            return at
    while at < end and data[at] != byte:
        at += 1
    return at


def _load_eight(typing_context: Any, data: Any, at: Any) -> Any:
    """data[at:at+8], which must exist, as one number, its first byte the lowest (little-endian CPUs)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.IntType(64).as_pointer())
        return builder.load(place, align=1)

    return types.uint64(data, types.intp), generate


def _trailing_zeros(typing_context: Any, number: Any) -> Any:
    """The zero bits below the lowest one; 64 where there is none."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(0))

    return types.int64(types.uint64), generate


load_eight: Any = intrinsic(_load_eight)
trailing_zeros: Any = intrinsic(_trailing_zeros)


@part
def leading_digits(data: Array, at: int) -> tuple[int, int]:
    """How many of the 8 bytes from `at` on, which must exist, come before the first that is no digit, and their value.

    All eight at once (Lemire 2018, "Quickly parsing eight digits"), without a branch to mispredict.
    """
    digits = load_eight(data, at) ^ np.uint64(0x3030303030303030)
    others = (digits | (digits + np.uint64(0x7676767676767676))) & np.uint64(0x8080808080808080)
    count = trailing_zeros(others) >> 3
    rest = np.uint64(64 - 8 * count)
    digits = (digits << (rest & np.uint64(63))) if count else np.uint64(0)
    digits = ((digits * np.uint64((10 << 8) + 1)) >> np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF)
    digits = ((digits * np.uint64((100 << 16) + 1)) >> np.uint64(16)) & np.uint64(0x0000FFFF0000FFFF)
    digits = (digits * np.uint64((10000 << 32) + 1)) >> np.uint64(32)
    return count, np.int64(digits)  # type: ignore[return-value]
