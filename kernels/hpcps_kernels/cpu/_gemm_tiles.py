"""The inner loops of matrix products, with explicit vectors: up to ROWS rows by VECTORS vectors of sums in registers.

One factor is packed in panels, in which the COLUMNS numbers of each step k lie side by side; of the other one number a
row is read where it lies, and spread. So a large matrix of weights need not be packed, whatever the other's size.
Each sum takes the steps one by one, in one chain of multiply-adds: its bits depend neither on the tile that it is in
nor on the width of vectors. Van Zee & van de Geijn 2015 (BLIS) name the parts; there both factors are packed.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hpcps_kernels.cpu._past import store_past
from hpcps_kernels.cpu._prefetch import LINE_BYTES, send_for
from hpcps_kernels.cpu._vectors import FEATURES, VECTOR_BYTES, Loop, Value, indices

# The sums, the vectors of one step and a spread number must fit the registers: x86 has 16 of them up to AVX2.
_HAS_FEW = FEATURES.get("sse2") and not FEATURES.get("avx512f")
ROWS, SOME, FEW = (6, 4, 2) if _HAS_FEW else (14, 8, 4)
VECTORS = 2
COLUMN_BYTES = VECTORS * VECTOR_BYTES
STORED, ADDED, FLIPPED, PAST = range(4)


def _tile(rows: int, how: int) -> Any:
    """An intrinsic: sum (r, c) of left[r, k] * panel[k, c] for k < count, for ``rows`` rows and COLUMNS columns.

    Addresses and distances are in bytes: ``like`` is an array of the dtype, ``out`` where sum (0, 0) belongs, and rows
    lie ``out_row`` apart there; STORED or ADDED to what is there, or PAST the caches, where each row begins with a
    vector in memory, or FLIPPED, with the rows' sums of a column side by side and columns ``out_row`` apart. left[r, k]
    is at ``left`` + r ``left_row`` + k ``left_step``. Sums go on from those of a tile that was stored, rows
    COLUMN_BYTES apart, at ``begun``; from 0 if that is 0.
    """

    def typed(
        typing_context: Any,
        like: Any,
        out: Any,
        out_row: Any,
        left: Any,
        left_row: Any,
        left_step: Any,
        panel: Any,
        count: Any,
        begun: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            loop = Loop(context, builder, like.dtype)
            vector = ir.VectorType(loop.scalar, VECTOR_BYTES // loop.size)
            out, out_row, left, left_row, left_step, panel, count, begun = arguments[1:]
            slots = [[loop.slot(vector) for _ in range(VECTORS)] for _ in range(rows)]
            flat = [slot for line in slots for slot in line]
            with builder.if_else(builder.icmp_signed("==", begun, loop.constant(0))) as (anew, on):
                with anew:
                    for slot in flat:
                        builder.store(ir.Constant(vector, None), slot)
                with on:
                    for number, slot in enumerate(flat):
                        builder.store(_load(loop, begun, number * VECTOR_BYTES, vector), slot)
            for place in [] if how == PAST else _places(loop, rows, how, out, out_row):  # others may have read them
                send_for(builder, builder.inttoptr(place, ir.IntType(8).as_pointer()), is_to_write=True)
            lines = [builder.mul(left_row, loop.constant(r)) for r in range(rows)]
            with cgutils.for_range(builder, count) as each:
                step = builder.add(panel, builder.mul(each.index, loop.constant(COLUMN_BYTES)))
                xs = [_load(loop, step, v * VECTOR_BYTES, vector) for v in range(VECTORS)]
                place = builder.add(left, builder.mul(each.index, left_step))
                for line, sums in zip(lines, slots, strict=True):
                    factor = loop.spread(_load(loop, builder.add(place, line), 0, loop.scalar), vector)
                    for x, slot in zip(xs, sums, strict=True):
                        builder.store(loop.multiply_add(factor, x, builder.load(slot)), slot)
            totals = [[builder.load(slot) for slot in line] for line in slots]
            (_write_flipped if how == FLIPPED else _write)(loop, totals, out, out_row, how)
            return context.get_dummy_value()

        return types.void(like, *[types.intp] * 8), generate

    return intrinsic(typed)


def _places(loop: Loop, rows: int, how: int, out: Value, out_row: Value) -> list[Value]:
    """Addresses in the cache lines, or in most of them, where the sums will be written."""
    builder = loop.builder
    count, offsets = (COLUMN_BYTES // loop.size, [0]) if how == FLIPPED else (rows, range(0, COLUMN_BYTES, LINE_BYTES))
    begins = [builder.add(out, builder.mul(out_row, loop.constant(r))) for r in range(count)]
    return [builder.add(begin, loop.constant(offset)) for begin in begins for offset in offsets]


def _write(loop: Loop, totals: list[list[Value]], out: Value, out_row: Value, how: int) -> None:
    for r, line in enumerate(totals):
        row = loop.builder.add(out, loop.builder.mul(out_row, loop.constant(r)))
        for v, total in enumerate(line):
            if how == ADDED:
                total = loop.builder.fadd(_load(loop, row, v * VECTOR_BYTES, total.type), total)
            if how == PAST:
                store_past(loop.builder, total, _address(loop, row, v * VECTOR_BYTES, total.type))
            else:
                _store(loop, total, row, v * VECTOR_BYTES)


def _write_flipped(loop: Loop, totals: list[list[Value]], out: Value, out_row: Value, how: int) -> None:
    """Blocks of as many rows as a vector has lanes are transposed in registers."""
    assert how == FLIPPED
    lanes = totals[0][0].type.count
    for v in range(VECTORS):
        for first in range(0, len(totals), lanes):
            block = [line[v] for line in totals[first : first + lanes]]
            empty = [ir.Constant(block[0].type, None)] * (lanes - len(block))
            for lane, column in enumerate(_transposed(loop.builder, [*block, *empty])):
                row = loop.builder.add(out, loop.builder.mul(out_row, loop.constant(v * lanes + lane)))
                _store(loop, column, row, first * loop.size, len(block))


def _transposed(builder: Any, rows: list[Value]) -> list[Value]:
    """The columns of a square block, by exchanging ever larger halves of pairs of rows."""
    lanes, size = len(rows), 1
    while size < lanes:
        upper = [lane if not lane & size else lanes + (lane ^ size) for lane in range(lanes)]
        lower = [lane | size if not lane & size else lanes + lane for lane in range(lanes)]
        for i in range(lanes):
            if not i & size:
                pair = rows[i], rows[i | size]
                rows[i], rows[i | size] = (builder.shuffle_vector(*pair, indices(m)) for m in (upper, lower))
        size *= 2
    return rows


def _transpose(typing_context: Any, like: Any, out: Any, out_row: Any, x: Any, x_row: Any) -> Any:
    """Transpose a square block of as many rows as a vector has lanes, from ``x`` to ``out``: addresses, and the
    distances of rows, in bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, like.dtype)
        out, out_row, x, x_row = arguments[1:]
        lanes = VECTOR_BYTES // loop.size
        vector = ir.VectorType(loop.scalar, lanes)
        places = [builder.mul(x_row, loop.constant(r)) for r in range(lanes)]
        rows = [_load(loop, builder.add(x, place), 0, vector) for place in places]
        for r, row in enumerate(_transposed(builder, rows)):
            _store(loop, row, builder.add(out, builder.mul(out_row, loop.constant(r))), 0)
        return context.get_dummy_value()

    return types.void(like, *[types.intp] * 4), generate


def _copy(rows: int | None) -> Any:
    """An intrinsic that copies ``rows`` numbers, or COLUMN_BYTES, from one address to another."""

    def typed(typing_context: Any, like: Any, out: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            loop = Loop(context, builder, like.dtype)
            out, x = arguments[1:]
            lanes = VECTOR_BYTES // loop.size
            vector, count = ir.VectorType(loop.scalar, lanes), VECTORS * lanes if rows is None else rows
            firsts = range(0, count, lanes)
            found = [_load(loop, x, first * loop.size, vector, min(lanes, count - first)) for first in firsts]
            for first, value in zip(firsts, found, strict=True):
                _store(loop, value, out, first * loop.size, min(lanes, count - first))
            return context.get_dummy_value()

        return types.void(like, types.intp, types.intp), generate

    return intrinsic(typed)


def _load(loop: Loop, place: Value, offset: int, shape: Any, count: int | None = None) -> Value:
    """Load a number or a vector; or its first ``count`` lanes, and 0."""
    address = _address(loop, place, offset, shape)
    if count is None or count == shape.count:
        return loop.builder.load(address, align=loop.size)
    return _masked(loop, "load", shape, count, shape, [], address, [ir.Constant(shape, None)])


def _store(loop: Loop, value: Value, place: Value, offset: int, count: int | None = None) -> None:
    """Store a number or a vector, or its first ``count`` lanes."""
    shape = value.type
    address = _address(loop, place, offset, shape)
    if count is None or count == shape.count:
        loop.builder.store(value, address, align=loop.size)
    else:
        _masked(loop, "store", shape, count, ir.VoidType(), [value], address, [])


def _address(loop: Loop, place: Value, offset: int, shape: Any) -> Value:
    return loop.builder.inttoptr(loop.builder.add(place, loop.constant(offset)), shape.as_pointer())


def _masked(
    loop: Loop, what: str, shape: Any, count: int, result: Any, before: list[Value], address: Value, after: list[Value]
) -> Value:
    """LLVM's masked load or store of the first ``count`` lanes."""
    lanes, word = ir.VectorType(ir.IntType(1), shape.count), ir.IntType(32)
    first = ir.Constant(lanes, [lane < count for lane in range(shape.count)])
    arguments = [*before, address, ir.Constant(word, loop.size), first, *after]
    name = f"llvm.masked.{what}.v{shape.count}{shape.element.intrinsic_name}.p0"
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(loop.builder.module, kind, name)  # type: ignore[no-untyped-call]
    return loop.builder.call(function, arguments)


tile, tile_of_some, tile_of_few, tile_of_one = (_tile(rows, STORED) for rows in (ROWS, SOME, FEW, 1))
past, past_of_some, past_of_few, past_of_one = (_tile(rows, PAST) for rows in (ROWS, SOME, FEW, 1))
flipped, flipped_of_some, flipped_of_few, flipped_of_one = (_tile(rows, FLIPPED) for rows in (ROWS, SOME, FEW, 1))
added = _tile(ROWS, ADDED)
transpose: Any = intrinsic(_transpose)
copy_columns, copy_rows = _copy(None), _copy(ROWS)
