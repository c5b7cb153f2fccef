"""The next byte of a kind in text, 64 bytes at a time: LLVM does not vectorise a loop that ends early."""

from __future__ import annotations

from typing import Any

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
