"""The inner loops of products with sparse rows where each feature has a row of weights, one a class.

Vectors run along the classes. A row seldom fills its last vector, so loads and stores are masked: with ten classes,
a loop of whole vectors and a scalar rest would be mostly rest. Columns are not checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hpcps_kernels.cpu._vectors import VECTOR_BYTES, Loop, Value, indices


class _Classes(Loop):
    """Builds code over the classes in vectors, the last of them masked."""

    def __init__(self, context: Any, builder: Any, dtype: Any) -> None:
        super().__init__(context, builder, dtype)
        self.lanes = VECTOR_BYTES // self.size
        self.vector = ir.VectorType(self.scalar, self.lanes)

    def mask(self, first: Value, end: Value) -> Value:
        """Which of the classes from `first` on come before `end`."""
        rest = self.builder.trunc(self.builder.sub(end, first), ir.IntType(32))
        rests = self.spread(rest, ir.VectorType(rest.type, self.lanes))
        return self.builder.icmp_signed("<", indices(range(self.lanes)), rests)

    def masked_load(self, row: Value, k: Value, mask: Value) -> Value:
        place, align = self.at(row, k, self.vector), ir.IntType(32)(self.size)
        kind = ir.FunctionType(self.vector, [place.type, align.type, mask.type, self.vector])
        nothing = ir.Constant(self.vector, None)
        return self.builder.call(self._masked("load", kind), [place, align, mask, nothing])

    def masked_store(self, value: Value, row: Value, k: Value, mask: Value) -> None:
        place, align = self.at(row, k, self.vector), ir.IntType(32)(self.size)
        kind = ir.FunctionType(ir.VoidType(), [self.vector, place.type, align.type, mask.type])
        self.builder.call(self._masked("store", kind), [value, place, align, mask])

    def _masked(self, verb: str, kind: Any) -> Any:
        name = f"llvm.masked.{verb}.v{self.lanes}f{8 * self.size}.p0"
        return cgutils.get_or_insert_function(self.builder.module, kind, name)  # type: ignore[no-untyped-call]

    def each(self, bounds: Sequence[Value], step: int) -> Any:
        start, stop = bounds
        return cgutils.for_range_slice(self.builder, start, stop, self.constant(step), self.index)


def _rows(build: Callable[..., None], with_values: bool) -> Any:
    """An intrinsic over a matrix (D, K), columns, values, the bounds of a sample's entries, a matrix (n, K) and the
    sample's row of it."""

    def typed(
        typing_context: Any, table: Any, columns: Any, values: Any, start: Any, stop: Any, samples: Any, i: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            loop = _Classes(context, builder, table.dtype)
            matrix, indices, numbers, rows = [
                context.make_array(signature.args[at])(context, builder, arguments[at]) for at in (0, 1, 2, 5)
            ]
            row = loop.row(rows, arguments[6])
            classes, bounds = builder.extract_value(matrix.shape, 1), arguments[3:5]

            def entry(j: Value) -> tuple[Value, Value]:
                """The row of the table that entry j names, and its value in all lanes."""
                column = builder.zext(builder.load(builder.gep(indices.data, [j])), loop.index)
                value = ir.Constant(loop.vector, [1.0] * loop.lanes)
                if with_values:
                    value = loop.spread(builder.load(builder.gep(numbers.data, [j])), loop.vector)
                return loop.row(matrix, column), value

            with loop.each((loop.constant(0), classes), loop.lanes) as (k, _):
                build(loop, row, k, loop.mask(k, classes), bounds, entry)
            return context.get_dummy_value()

        return types.void(table, columns, values, types.intp, types.intp, samples, types.intp), generate

    return intrinsic(typed)


def _add_scores(
    loop: _Classes, scores: Value, k: Value, mask: Value, bounds: Sequence[Value], entry: Callable[..., Any]
) -> None:
    """samples[i] += sum over the entries of value * table[column]."""
    total = loop.slot(loop.vector)
    loop.builder.store(loop.masked_load(scores, k, mask), total)
    with loop.each(bounds, 1) as (j, _):
        weights, value = entry(j)
        product = loop.multiply_add(value, loop.masked_load(weights, k, mask), loop.builder.load(total))
        loop.builder.store(product, total)
    loop.masked_store(loop.builder.load(total), scores, k, mask)


def _add_products(
    loop: _Classes, residual: Value, k: Value, mask: Value, bounds: Sequence[Value], entry: Callable[..., Any]
) -> None:
    """table[column] += value * samples[i] for each entry."""
    factors = loop.masked_load(residual, k, mask)
    with loop.each(bounds, 1) as (j, _):
        gradient, value = entry(j)
        total = loop.multiply_add(value, factors, loop.masked_load(gradient, k, mask))
        loop.masked_store(total, gradient, k, mask)


add_row_scores, add_row_scores_of_ones = _rows(_add_scores, True), _rows(_add_scores, False)
add_row_products, add_row_products_of_ones = _rows(_add_products, True), _rows(_add_products, False)
