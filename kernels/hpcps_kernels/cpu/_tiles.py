"""The inner loops of matrix products, with explicit vectors: ROWS samples by CLASSES, along the features.

A tile keeps its sums (or its factors) in vector registers, so that every load feeds several multiply-adds.
LLVM's own vectoriser will not do that: it does not block over samples and classes, it gives up on a loop with
this many stores, and it halves the vectors on CPUs that have 512 bits. The order of each sum is fixed,
wherever the arrays lie.

Rows and classes past the end are clamped to the last one: they compute the same value again and store it in
the same place, so that no smaller tiles are needed. `add_products` clamps classes only; residuals of samples
that do not exist must be 0.

Samples may be of another dtype than the rest; each vector of them is converted where it is loaded. uint16 stands for
the bits of float16, which Numba does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ROWS = 4
AHEAD_BYTES = 4096  # short samples, several at a time, are no pattern that the CPU foresees: they are sent for


_FEATURES = llvm.get_host_cpu_features()
VECTOR_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx2") else 16
# The sums, a vector of each row and one of a class must fit the registers: x86 has 16 of them up to AVX2.
CLASSES = 2 if _FEATURES.get("sse2") and not _FEATURES.get("avx512f") else 5

Value = Any  # an LLVM value


class _Loop:
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
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        place = self.builder.bitcast(self.builder.gep(row, [d]), byte)
        place = self.builder.gep(place, [self.constant(AHEAD_BYTES)])
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            self.builder.module, kind, "llvm.prefetch.p0"
        )
        read, keep, data = flag(0), flag(3), flag(1)
        self.builder.call(function, [place, read, keep, data])

    def convert(self, row: Value, d: Value, shape: Any, dtype: Any) -> Value:
        """Load from a row of `dtype`, as floats of `shape`."""
        stored = ir.HalfType() if dtype == types.uint16 else self.context.get_data_type(dtype)
        value = self.builder.load(self.at(row, d, _like(shape, stored)), align=dtype.bitwidth // 8)
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
        if shape is self.scalar:
            return value
        zero = ir.Constant(ir.IntType(32), 0)
        single = self.builder.insert_element(ir.Constant(shape, ir.Undefined), value, zero)
        return self.builder.shuffle_vector(single, single, _indices([0] * shape.count))

    def multiply_add(self, x: Value, y: Value, total: Value) -> Value:
        name = self.scalar.intrinsic_name
        name = name if x.type is self.scalar else f"v{x.type.count}{name}"
        kind = ir.FunctionType(x.type, [x.type] * 3)
        function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            self.builder.module, kind, f"llvm.fmuladd.{name}"
        )
        return self.builder.call(function, [x, y, total])

    def total(self, vector: Value) -> Value:
        """The sum of a vector's lanes: its upper half is added to its lower half until one lane is left."""
        lanes = vector.type.count
        while lanes > 1:
            lanes //= 2
            masks = [_indices(range(lanes)), _indices(range(lanes, 2 * lanes))]
            vector = self.builder.fadd(*[self.builder.shuffle_vector(vector, vector, m) for m in masks])
        return self.builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def _like(shape: Any, scalar: Any) -> Any:
    """A vector of as many, or one, of `scalar`."""
    return ir.VectorType(scalar, shape.count) if isinstance(shape, ir.VectorType) else scalar


def _indices(lanes: Sequence[int]) -> Value:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))


def _tile(build: Callable[..., None], samples_at: int, rows: int, classes: int) -> Any:
    """An intrinsic over three matrices and (i, k, lo, hi): first sample, first class, range of features."""

    def typed(typing_context: Any, a: Any, b: Any, c: Any, i: Any, k: Any, lo: Any, hi: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            loop = _Loop(context, builder, a.dtype)
            samples = signature.args[samples_at].dtype
            matrices = [
                context.make_array(t)(context, builder, value)
                for t, value in zip(signature.args[:3], arguments[:3], strict=True)
            ]
            build(loop, matrices, samples, arguments[3:], rows, classes)
            return context.get_dummy_value()

        return types.void(a, b, c, *[types.intp] * 4), generate

    return intrinsic(typed)


def _add_scores(loop: _Loop, matrices: list[Any], dtype: Any, place: list[Value], rows: int, classes: int) -> None:
    """scores[i + a, k + b] += samples[i + a, lo:hi] · weight[k + b, lo:hi]."""
    scores, samples, weight = matrices
    i, k, lo, hi = place
    builder = loop.builder
    n, count = builder.extract_value(samples.shape, 0), builder.extract_value(weight.shape, 0)
    lines = [loop.clamped(i, a, n) for a in range(rows)]
    columns = [loop.clamped(k, b, count) for b in range(classes)]
    xs = [loop.row(samples, line) for line in lines]
    ws = [loop.row(weight, column) for column in columns]
    places = [builder.gep(loop.row(scores, line), [column]) for line in lines for column in columns]
    vector = ir.VectorType(loop.scalar, VECTOR_BYTES // loop.size)
    sums = {s: [loop.slot(s) for _ in places] for s in (vector, loop.scalar)}
    for slot in sums[vector]:
        builder.store(ir.Constant(vector, None), slot)
    for slot, place in zip(sums[loop.scalar], places, strict=True):
        builder.store(builder.load(place), slot)

    def body(d: Value, shape: Any) -> None:
        if classes == 1:  # with more the arithmetic takes longer than the memory
            for row in xs:
                loop.prefetch(row, d)
        x = [loop.convert(row, d, shape, dtype) for row in xs]
        w = [loop.load(row, d, shape) for row in ws]
        for slot, (u, v) in zip(sums[shape], [(u, v) for u in x for v in w], strict=True):
            builder.store(loop.multiply_add(u, v, builder.load(slot)), slot)

    loop.run(lo, hi, body)
    for wide, narrow, place in zip(sums[vector], sums[loop.scalar], places, strict=True):
        builder.store(builder.fadd(builder.load(narrow), loop.total(builder.load(wide))), place)


def _add_products(loop: _Loop, matrices: list[Any], dtype: Any, place: list[Value], rows: int, classes: int) -> None:
    """gradient[k + b, lo:hi] += sum over a of residual[i + a, k + b] * samples[i + a, lo:hi]."""
    gradient, residual, samples = matrices
    i, k, lo, hi = place
    builder = loop.builder
    n, count = builder.extract_value(samples.shape, 0), builder.extract_value(gradient.shape, 0)
    columns = [loop.clamped(k, b, count) for b in range(classes)]
    xs = [loop.row(samples, loop.clamped(i, a, n)) for a in range(rows)]
    gs = [loop.row(gradient, column) for column in columns]
    lines = [loop.row(residual, builder.add(i, loop.constant(a))) for a in range(rows)]
    factors = [[builder.load(builder.gep(line, [column])) for line in lines] for column in columns]
    vector = ir.VectorType(loop.scalar, VECTOR_BYTES // loop.size)
    spread = {s: [[loop.spread(f, s) for f in row] for row in factors] for s in (vector, loop.scalar)}

    def body(d: Value, shape: Any) -> None:
        x = [loop.convert(row, d, shape, dtype) for row in xs]
        totals = [loop.load(row, d, shape) for row in gs]
        for b, row in enumerate(spread[shape]):
            for u, factor in zip(x, row, strict=True):
                totals[b] = loop.multiply_add(u, factor, totals[b])
        for total, g in zip(totals, gs, strict=True):
            loop.store(total, g, d, shape)

    loop.run(lo, hi, body)


add_scores = _tile(_add_scores, 1, ROWS, CLASSES)
add_products = _tile(_add_products, 2, ROWS, CLASSES)
add_scores_single = _tile(_add_scores, 1, 2 * ROWS, 1)
add_products_single = _tile(_add_products, 2, 2 * ROWS, 1)
