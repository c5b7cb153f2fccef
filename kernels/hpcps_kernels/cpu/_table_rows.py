"""Sums and updates of a table's rows, which are short: columns go through in vectors, then halves and quarters.

LLVM's own loops over a row of 16 or 32 floats never reach their vectors, which they unroll for long ones; and a sum of
rows stays in a register here while the rows go by. `values` of length 0 stand for ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hpcps_kernels.cpu._vectors import VECTOR_BYTES, Loop

Value = Any  # an LLVM value


class _Columns(Loop):
    """Builds code over some columns of rows."""

    def run(self, lo: Value, hi: Value, body: Callable[[Value, Any], None]) -> None:
        lanes, length = VECTOR_BYTES // self.size, self.builder.sub(hi, lo)
        start = lo
        for width in (lanes, lanes // 2, lanes // 4, 1):
            left = self.builder.and_(length, self.constant(width - 1))
            stop = self.builder.sub(hi, left)
            shape = ir.VectorType(self.scalar, width) if width > 1 else self.scalar
            each = cgutils.for_range_slice(self.builder, start, stop, self.constant(width), self.index)
            with each as (d, _):
                body(d, shape)
            start = stop

    def columns(self, matrix: Any) -> Value:
        return self.builder.extract_value(matrix.shape, 1)

    def zero(self, shape: Any) -> Value:
        return ir.Constant(shape, None if shape is not self.scalar else 0.0)

    @contextmanager
    def entries(self, table: Any, indices: Any, values: Any, start: Value, stop: Value) -> Iterator[Any]:
        """A loop over entries start .. stop - 1; gives the row of the table, its number and the value."""
        builder = self.builder
        alone = self.slot(self.scalar)
        builder.store(ir.Constant(self.scalar, 1.0), alone)
        is_there = builder.icmp_signed(">", builder.extract_value(values.shape, 0), self.constant(0))
        first = builder.select(is_there, values.data, alone)
        step = builder.zext(is_there, self.index)
        with cgutils.for_range_slice(builder, start, stop, self.constant(1), self.index) as (e, _):
            number = builder.sext(builder.load(builder.gep(indices.data, [e])), self.index)
            yield self.row(table, number), number, builder.load(builder.gep(first, [builder.mul(e, step)]))


def _over(build: Callable[..., Any], arrays: int, returns: bool = False) -> Callable[[tuple[Any, ...]], Any]:
    """Types and code of `build(columns, arrays, other arguments)` from the types; the first array tells the dtype."""

    def declare(kinds: tuple[Any, ...]) -> Any:
        dtype = kinds[0].dtype

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            made = [context.make_array(t)(context, builder, v) for t, v in zip(kinds, arguments[:arrays], strict=False)]
            result = build(_Columns(context, builder, dtype), made, arguments[arrays:])
            return result if returns else context.get_dummy_value()

        numbers = [dtype if isinstance(t, types.Float) else types.intp for t in kinds[arrays:]]
        return (dtype if returns else types.void)(*kinds[:arrays], *numbers), generate

    return declare


def _add_rows(columns: _Columns, arrays: list[Any], place: list[Value]) -> None:
    """out[i] = the sum of values[e] * table[indices[e]]."""
    out, table, indices, values = arrays
    i, start, stop = place
    builder, into = columns.builder, columns.row(out, i)

    def body(d: Value, shape: Any) -> None:
        total = columns.slot(shape)
        builder.store(columns.zero(shape), total)
        with columns.entries(table, indices, values, start, stop) as (row, _, value):
            x = columns.spread(value, shape)
            builder.store(columns.multiply_add(x, columns.load(row, d, shape), builder.load(total)), total)
        columns.store(builder.load(total), into, d, shape)

    columns.run(columns.constant(0), columns.columns(table), body)


def _spread_row(columns: _Columns, arrays: list[Any], place: list[Value]) -> None:
    """table_gradient[indices[e]] += factor * values[e] * gradient[i]."""
    table_gradient, gradient, indices, values = arrays
    i, start, stop, factor = place
    builder, source = columns.builder, columns.row(gradient, i)

    def body(d: Value, shape: Any) -> None:
        g = columns.load(source, d, shape)
        with columns.entries(table_gradient, indices, values, start, stop) as (row, _, value):
            x = columns.spread(builder.fmul(factor, value), shape)
            columns.store(columns.multiply_add(x, g, columns.load(row, d, shape)), row, d, shape)

    columns.run(columns.constant(0), columns.columns(gradient), body)


def _pairs(columns: _Columns, arrays: list[Any], place: list[Value]) -> Value:
    """sums[i] = the sum of x v, with x = values[e] and v = table[indices[e]]; returns the total of its squares less
    those of each x v. Columns from 1."""
    sums, table, indices, values = arrays
    i, start, stop = place
    builder, into = columns.builder, columns.row(sums, i)
    all_columns = columns.slot(columns.scalar)
    builder.store(columns.zero(columns.scalar), all_columns)

    def body(d: Value, shape: Any) -> None:
        total, squares = columns.slot(shape), columns.slot(shape)
        for slot in (total, squares):
            builder.store(columns.zero(shape), slot)
        with columns.entries(table, indices, values, start, stop) as (row, _, value):
            y = builder.fmul(columns.spread(value, shape), columns.load(row, d, shape))
            builder.store(builder.fadd(builder.load(total), y), total)
            builder.store(columns.multiply_add(y, y, builder.load(squares)), squares)
        s = builder.load(total)
        columns.store(s, into, d, shape)
        found = builder.fsub(builder.fmul(s, s), builder.load(squares))
        found = found if shape is columns.scalar else columns.total(found)
        builder.store(builder.fadd(builder.load(all_columns), found), all_columns)

    columns.run(columns.constant(1), columns.columns(table), body)
    return builder.load(all_columns)


def _pairs_back(columns: _Columns, arrays: list[Any], place: list[Value]) -> None:
    """table_gradient[indices[e]] += factor x (sums[i] - x v), as in `_pairs`. Columns from 1."""
    table_gradient, sums, table, indices, values = arrays
    i, start, stop, factor = place
    builder, source = columns.builder, columns.row(sums, i)

    def body(d: Value, shape: Any) -> None:
        s = columns.load(source, d, shape)
        with columns.entries(table, indices, values, start, stop) as (row, number, value):
            x = columns.spread(value, shape)
            others = builder.fsub(s, builder.fmul(x, columns.load(row, d, shape)))
            weight = columns.spread(builder.fmul(factor, value), shape)
            into = columns.row(table_gradient, number)
            columns.store(columns.multiply_add(weight, others, columns.load(into, d, shape)), into, d, shape)

    columns.run(columns.constant(1), columns.columns(table), body)


def _product(columns: _Columns, arrays: list[Any], place: list[Value]) -> Value:
    """The inner product of a[i] and b[j], columns from 1."""
    builder = columns.builder
    rows = [columns.row(matrix, number) for matrix, number in zip(arrays, place, strict=True)]
    sums: dict[Any, Value] = {}

    def body(d: Value, shape: Any) -> None:
        a, b = [columns.load(row, d, shape) for row in rows]
        builder.store(columns.multiply_add(a, b, builder.load(sums[shape])), sums[shape])

    lanes = VECTOR_BYTES // columns.size
    shapes = [*(ir.VectorType(columns.scalar, n) for n in (lanes, lanes // 2, lanes // 4)), columns.scalar]
    for shape in shapes:
        sums[shape] = columns.slot(shape)
        builder.store(columns.zero(shape), sums[shape])
    columns.run(columns.constant(1), columns.columns(arrays[0]), body)
    total = builder.load(sums[columns.scalar])
    for shape in shapes[:-1]:
        total = builder.fadd(total, columns.total(builder.load(sums[shape])))
    return total


def _product_back(columns: _Columns, arrays: list[Any], place: list[Value]) -> None:
    """a_gradient[i] += factor * b[j]; b_gradient[j] += factor * a[i]. Columns from 1."""
    i, j, factor = place
    into_a, into_b, a, b = [columns.row(m, n) for m, n in zip(arrays, (i, j, i, j), strict=True)]

    def body(d: Value, shape: Any) -> None:
        f = columns.spread(factor, shape)
        for into, row in ((into_a, b), (into_b, a)):
            g = columns.multiply_add(f, columns.load(row, d, shape), columns.load(into, d, shape))
            columns.store(g, into, d, shape)

    columns.run(columns.constant(1), columns.columns(arrays[0]), body)


def _typed_add_rows(_: Any, out: Any, table: Any, indices: Any, values: Any, i: Any, start: Any, stop: Any) -> Any:
    return _over(_add_rows, 4)((out, table, indices, values, i, start, stop))


def _typed_spread_row(
    _: Any, table_gradient: Any, gradient: Any, indices: Any, values: Any, i: Any, start: Any, stop: Any, factor: Any
) -> Any:
    return _over(_spread_row, 4)((table_gradient, gradient, indices, values, i, start, stop, factor))


def _typed_pairs(_: Any, sums: Any, table: Any, indices: Any, values: Any, i: Any, start: Any, stop: Any) -> Any:
    return _over(_pairs, 4, returns=True)((sums, table, indices, values, i, start, stop))


def _typed_pairs_back(
    _: Any,
    table_gradient: Any,
    sums: Any,
    table: Any,
    indices: Any,
    values: Any,
    i: Any,
    start: Any,
    stop: Any,
    factor: Any,
) -> Any:
    return _over(_pairs_back, 5)((table_gradient, sums, table, indices, values, i, start, stop, factor))


def _typed_product(_: Any, a: Any, b: Any, i: Any, j: Any) -> Any:
    return _over(_product, 2, returns=True)((a, b, i, j))


def _typed_product_back(_: Any, a_gradient: Any, b_gradient: Any, a: Any, b: Any, i: Any, j: Any, factor: Any) -> Any:
    return _over(_product_back, 4)((a_gradient, b_gradient, a, b, i, j, factor))


add_rows: Any = intrinsic(_typed_add_rows)
spread_row: Any = intrinsic(_typed_spread_row)
pairs: Any = intrinsic(_typed_pairs)
pairs_back: Any = intrinsic(_typed_pairs_back)
product: Any = intrinsic(_typed_product)
product_back: Any = intrinsic(_typed_product_back)
