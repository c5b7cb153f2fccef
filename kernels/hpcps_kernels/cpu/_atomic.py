"""Memory that other ranks write meanwhile: loads and stores that neither the compiler nor the CPU moves."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

BYTES = 8


def _load_acquire(typing_context: Any, array: Any, row: Any) -> Any:
    """array[row, 0] of a C-contiguous int64 matrix; what is read after it is not read before it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature, arguments)
        return builder.load_atomic(place, "acquire", align=BYTES)

    return types.int64(array, types.intp), generate


def _store_release(typing_context: Any, array: Any, row: Any, value: Any) -> Any:
    """array[row, 0] = value of a C-contiguous int64 matrix; what was written before it is seen before it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature, arguments)
        builder.store_atomic(arguments[2], place, "release", align=BYTES)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), generate


def _place(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    matrix = context.make_array(signature.args[0])(context, builder, arguments[0])
    columns = builder.extract_value(matrix.shape, 1)
    return builder.gep(matrix.data, [builder.mul(arguments[1], columns)])


load_acquire: Any = intrinsic(_load_acquire)
store_release: Any = intrinsic(_store_release)
