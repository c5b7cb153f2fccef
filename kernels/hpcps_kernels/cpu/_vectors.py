"""Code with explicit vectors: what the inner loops that LLVM would not vectorise as wanted are built from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils

from hpcps_kernels.cpu._prefetch import send_for

AHEAD_BYTES = 4096  # short samples, several at a time, are no pattern that the CPU foresees: they are sent for

FEATURES = llvm.get_host_cpu_features()
VECTOR_BYTES = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx2") else 16

Value = Any  # an LLVM value


def spread(builder: Any, value: Value, shape: Any) -> Value:
    """A number in every lane of a vector of `shape`; the number itself where `shape` is no vector."""
    if not isinstance(shape, ir.VectorType):
        return value
    zero = ir.Constant(ir.IntType(32), 0)
    single = builder.insert_element(ir.Constant(shape, ir.Undefined), value, zero)
    return builder.shuffle_vector(single, single, indices([0] * shape.count))


def multiply_add(builder: Any, x: Value, y: Value, total: Value) -> Value:
    """x y + total, of numbers or vectors; rounded once where the CPU can do so."""
    is_vector = isinstance(x.type, ir.VectorType)
    name = f"v{x.type.count}{x.type.element.intrinsic_name}" if is_vector else x.type.intrinsic_name
    kind = ir.FunctionType(x.type, [x.type] * 3)
    function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module, kind, f"llvm.fmuladd.{name}"
    )
    return builder.call(function, [x, y, total])


class Loop:
    """Builds code over features lo .. hi - 1, first in whole vectors, then one by one."""

    def __init__(self, context: Any, builder: Any, dtype: Any) -> None:
        self.context, self.builder = context, builder
        self.scalar = context.get_data_type(dtype)
        self.size = dtype.bitwidth // 8
        self.index = context.get_value_type(types.intp)

    def constant(self, value: int) -> Value:
        return ir.Constant(self.index, value)

    def slot(self, shape: Any) -> Value:
        """A variable, which LLVM turns into a register."""
        return cgutils.alloca_once(self.builder, shape)  # type: ignore[no-untyped-call]

    def clamped(self, first: Value, offset: int, end: Value) -> Value:
        """min(first + offset, end - 1)."""
        last = self.builder.sub(end, self.constant(1))
        at = self.builder.add(first, self.constant(offset))
        return self.builder.select(self.builder.icmp_signed("<", at, last), at, last)

    def row(self, matrix: Any, index: Value) -> Value:
        """A pointer to the first element of a row of a C-contiguous matrix."""
        columns = self.builder.extract_value(matrix.shape, 1)
        return self.builder.gep(matrix.data, [self.builder.mul(index, columns)])

    def run(self, lo: Value, hi: Value, body: Callable[[Value, Any], None]) -> None:
        lanes = VECTOR_BYTES // self.size
        length = self.builder.sub(hi, lo)
        whole = self.builder.sub(length, self.builder.and_(length, self.constant(lanes - 1)))
        middle = self.builder.add(lo, whole)
        for start, stop, step in ((lo, middle, lanes), (middle, hi, 1)):
            shape = ir.VectorType(self.scalar, lanes) if step > 1 else self.scalar
            each = cgutils.for_range_slice(self.builder, start, stop, self.constant(step), self.index)
            with each as (d, _):
                body(d, shape)

    def at(self, row: Value, d: Value, shape: Any) -> Value:
        return self.builder.bitcast(self.builder.gep(row, [d]), shape.as_pointer())

    def load(self, row: Value, d: Value, shape: Any) -> Value:
        return self.builder.load(self.at(row, d, shape), align=self.size)

    def prefetch(self, row: Value, d: Value) -> None:
        """Begin to bring what lies AHEAD_BYTES on. Never faults, changes nothing."""
        place = self.builder.bitcast(self.builder.gep(row, [d]), ir.IntType(8).as_pointer())
        send_for(self.builder, self.builder.gep(place, [self.constant(AHEAD_BYTES)]))

    def convert(self, row: Value, d: Value, shape: Any, dtype: Any) -> Value:
        """Load from a row of `dtype`, as floats of `shape`."""
        stored = ir.HalfType() if dtype == types.uint16 else self.context.get_data_type(dtype)
        value = self.builder.load(self.at(row, d, like(shape, stored)), align=dtype.bitwidth // 8)
        if dtype == types.uint8:
            return self.builder.uitofp(value, shape)
        if dtype == types.int8:
            return self.builder.sitofp(value, shape)
        if stored == self.scalar:
            return value
        return (self.builder.fptrunc if dtype.bitwidth > 8 * self.size else self.builder.fpext)(value, shape)

    def store(self, value: Value, row: Value, d: Value, shape: Any) -> None:
        self.builder.store(value, self.at(row, d, shape), align=self.size)

    def spread(self, value: Value, shape: Any) -> Value:
        return spread(self.builder, value, shape)

    def multiply_add(self, x: Value, y: Value, total: Value) -> Value:
        return multiply_add(self.builder, x, y, total)

    def total(self, vector: Value) -> Value:
        """The sum of a vector's lanes: its upper half is added to its lower half until one lane is left."""
        lanes = vector.type.count
        while lanes > 1:
            lanes //= 2
            masks = [indices(range(lanes)), indices(range(lanes, 2 * lanes))]
            vector = self.builder.fadd(*[self.builder.shuffle_vector(vector, vector, m) for m in masks])
        return self.builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def like(shape: Any, scalar: Any) -> Any:
    """A vector of as many, or one, of `scalar`."""
    return ir.VectorType(scalar, shape.count) if isinstance(shape, ir.VectorType) else scalar


def indices(lanes: Sequence[int]) -> Value:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))
