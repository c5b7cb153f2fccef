"""One row of a matrix into one row of another, with explicit vectors: copied, added, or added in fixed point.

Rows are short and many: a loop that LLVM vectorises by itself would check each time whether the two overlap, and do
what is left of a row element by element. Here the rest is done in vectors of half the length, a quarter, and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hpcps_kernels.cpu._vectors import VECTOR_BYTES, spread

Value = Any  # an LLVM value


class _Row:
    """A pointer into a row of a C-contiguous matrix, read and written in vectors."""

    def __init__(self, context: Any, builder: Any, dtype: Any, matrix: Any, index: Value) -> None:
        self.builder, self.size = builder, dtype.bitwidth // 8
        self.scalar = context.get_data_type(dtype)
        self.columns = builder.extract_value(matrix.shape, 1)
        self.first = builder.gep(matrix.data, [builder.mul(index, self.columns)])

    def shape(self, lanes: int) -> Any:
        return ir.VectorType(self.scalar, lanes) if lanes > 1 else self.scalar

    def load(self, at: Value, lanes: int) -> Value:
        return self.builder.load(self._place(at, lanes), align=self.size)

    def store(self, value: Value, at: Value, lanes: int) -> None:
        self.builder.store(value, self._place(at, lanes), align=self.size)

    def _place(self, at: Value, lanes: int) -> Value:
        return self.builder.bitcast(self.builder.gep(self.first, [at]), self.shape(lanes).as_pointer())


def _in_vectors(builder: Any, length: Value, lanes: int, body: Callable[[Value, int], None]) -> None:
    """body(first element, lanes) over elements 0 .. length - 1."""
    whole = builder.and_(length, ir.Constant(length.type, -lanes))
    step = ir.Constant(length.type, lanes)
    with cgutils.for_range_slice(builder, ir.Constant(length.type, 0), whole, step, length.type) as (at, _):
        body(at, lanes)
    while lanes > 1:
        lanes //= 2
        is_left = builder.and_(length, ir.Constant(length.type, lanes))
        with builder.if_then(builder.icmp_signed("!=", is_left, ir.Constant(length.type, 0))):
            body(builder.and_(length, ir.Constant(length.type, -2 * lanes)), lanes)


def _build(combine: Callable[..., None], context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    into, i, source, j = arguments[:4]
    rows = [
        _Row(context, builder, kind.dtype, context.make_array(kind)(context, builder, matrix), index)
        for kind, matrix, index in ((signature.args[0], into, i), (signature.args[2], source, j))
    ]
    lanes = VECTOR_BYTES // max(row.size for row in rows)
    _in_vectors(builder, rows[0].columns, lanes, lambda at, lanes: combine(builder, *rows, at, lanes, *arguments[4:]))
    return context.get_dummy_value()


def _copy(builder: Any, into: _Row, source: _Row, at: Value, lanes: int) -> None:
    into.store(source.load(at, lanes), at, lanes)


def _add(builder: Any, into: _Row, source: _Row, at: Value, lanes: int) -> None:
    add = builder.add if isinstance(into.scalar, ir.IntType) else builder.fadd
    into.store(add(into.load(at, lanes), source.load(at, lanes)), at, lanes)


def _add_fixed(builder: Any, into: _Row, source: _Row, at: Value, lanes: int, scale: Value) -> None:
    shape = ir.VectorType(scale.type, lanes) if lanes > 1 else scale.type
    x = source.load(at, lanes)
    x = builder.fmul(x if x.type == shape else builder.fpext(x, shape), spread(builder, scale, shape))
    name = f"llvm.rint.v{lanes}f64" if lanes > 1 else "llvm.rint.f64"
    rint = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module, ir.FunctionType(shape, [shape]), name
    )
    whole = builder.fptosi(builder.call(rint, [x]), into.shape(lanes))
    into.store(builder.add(into.load(at, lanes), whole), at, lanes)


def _copy_row(typing_context: Any, into: Any, i: Any, source: Any, j: Any) -> Any:
    """into[i] = source[j]."""

    def generate(*build: Any) -> Any:
        return _build(_copy, *build)

    return types.void(into, types.intp, source, types.intp), generate


def _add_row(typing_context: Any, into: Any, i: Any, source: Any, j: Any) -> Any:
    """into[i] += source[j]."""

    def generate(*build: Any) -> Any:
        return _build(_add, *build)

    return types.void(into, types.intp, source, types.intp), generate


def _add_row_fixed(typing_context: Any, into: Any, i: Any, source: Any, j: Any, scale: Any) -> Any:
    """into[i] += rint(source[j] * scale), into being int64."""

    def generate(*build: Any) -> Any:
        return _build(_add_fixed, *build)

    return types.void(into, types.intp, source, types.intp, types.float64), generate


copy_row: Any = intrinsic(_copy_row)
add_row: Any = intrinsic(_add_row)
add_row_fixed: Any = intrinsic(_add_row_fixed)
