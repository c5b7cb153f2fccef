"""Tells the CPU which memory will be read soon: rows picked at random are no pattern that it could foresee."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LINE_BYTES = 64


def send_for(builder: Any, pointer: Any, is_to_write: bool = False) -> None:
    """Build the instruction for the cache line at `pointer`; one `is_to_write` is taken from other cores, too."""
    byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
    function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module, kind, "llvm.prefetch.p0"
    )
    how, keep, data = flag(int(is_to_write)), flag(3), flag(1)
    builder.call(function, [builder.bitcast(pointer, byte), how, keep, data])


def _prefetch(typing_context: Any, matrix: Any, row: Any, column: Any) -> Any:
    """Begin to bring the cache line of matrix[row, column] (C-contiguous) near. Never faults, changes nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        columns = builder.extract_value(array.shape, 1)
        offset = builder.add(builder.mul(arguments[1], columns), arguments[2])
        send_for(builder, builder.gep(array.data, [offset]))
        return context.get_dummy_value()

    return types.void(matrix, types.intp, types.intp), generate


def _prefetch_at(typing_context: Any, vector: Any, i: Any) -> Any:
    """Begin to bring the cache line of vector[i] (without gaps) near. Never faults, changes nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        send_for(builder, builder.gep(array.data, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(vector, types.intp), generate


def _prefetch_row(typing_context: Any, matrix: Any, row: Any) -> Any:
    """The same for all cache lines of matrix[row]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        columns = builder.extract_value(array.shape, 1)
        first = builder.gep(array.data, [builder.mul(arguments[1], columns)])
        number = columns.type
        line = number(max(1, LINE_BYTES // (matrix.dtype.bitwidth // 8)))
        with cgutils.for_range_slice(builder, number(0), columns, line, number) as (column, _):
            send_for(builder, builder.gep(first, [column]))
        send_for(builder, builder.gep(first, [builder.sub(columns, number(1))]))  # rows begin anywhere in a line
        return context.get_dummy_value()

    return types.void(matrix, types.intp), generate


prefetch: Any = intrinsic(_prefetch)
prefetch_row: Any = intrinsic(_prefetch_row)
prefetch_at: Any = intrinsic(_prefetch_at)
