"""Tells the CPU which memory will be read soon: rows picked at random are no pattern that it could foresee."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _prefetch(typing_context: Any, matrix: Any, row: Any, column: Any) -> Any:
    """Begin to bring the cache line of matrix[row, column] (C-contiguous) near. Never faults, changes nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        columns = builder.extract_value(array.shape, 1)
        offset = builder.add(builder.mul(arguments[1], columns), arguments[2])
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        place = builder.bitcast(builder.gep(array.data, [offset]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module, kind, "llvm.prefetch.p0"
        )
        read, keep, data = flag(0), flag(3), flag(1)
        builder.call(function, [place, read, keep, data])
        return context.get_dummy_value()

    return types.void(matrix, types.intp, types.intp), generate


prefetch: Any = intrinsic(_prefetch)
