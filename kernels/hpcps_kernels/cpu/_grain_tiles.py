"""The inner loop of a grain's weight gradient, with explicit vectors: CLASSES rows by VECTORS vectors of features.

All samples of a grain pass while its sums are in registers; then these are added to what the stack holds below, or put
on top of it. A sum takes the samples one by one, so its bits depend neither on the tile nor on the width of vectors.
Classes past the end are clamped to the last one, as in `_tiles.py`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hpcps_kernels.cpu._tiles import CLASSES
from hpcps_kernels.cpu._vectors import VECTOR_BYTES, Loop, Value

VECTORS = 4  # CLASSES * VECTORS sums, VECTORS of samples and a factor: as many registers as a tile of `_tiles.py`


def _push_products(
    typing_context: Any,
    stack: Any,
    residual: Any,
    samples: Any,
    k: Any,
    lo: Any,
    hi: Any,
    first: Any,
    start: Any,
    stop: Any,
    begin: Any,
    is_fresh: Any,
    to: Any,
    is_added: Any,
) -> Any:
    """Of classes k .. k + CLASSES - 1 and features lo .. hi - 1: residual.T @ samples of the samples start .. stop - 1.

    Residuals stand from row ``first`` on. The sums begin with what row ``begin`` of the stack holds, or with 0 if
    ``is_fresh``; row ``to`` is overwritten with them, or added to if ``is_added``.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loop = Loop(context, builder, stack.dtype)
        held, factors, xs = (
            context.make_array(t)(context, builder, value)
            for t, value in zip(signature.args[:3], arguments[:3], strict=True)
        )
        k, lo, hi, first, start, stop, begin, is_fresh, to, is_added = arguments[3:]
        fresh, added = (builder.icmp_signed("!=", flag, loop.constant(0)) for flag in (is_fresh, is_added))
        features, classes = builder.extract_value(xs.shape, 1), builder.extract_value(factors.shape, 1)
        columns = [loop.clamped(k, c, classes) for c in range(CLASSES)]
        begins, ends = (
            [builder.gep(loop.row(held, row), [builder.mul(column, features)]) for column in columns]
            for row in (begin, to)
        )
        lanes = VECTOR_BYTES // loop.size

        def tile(d: Value, shape: Any, vectors: int) -> None:
            places = [builder.add(d, loop.constant(v * lanes)) for v in range(vectors)]
            slots = [[loop.slot(shape) for _ in places] for _ in columns]
            for row, line in zip(begins, slots, strict=True):
                for place, slot in zip(places, line, strict=True):
                    value = builder.select(fresh, ir.Constant(shape, None), loop.load(row, place, shape))
                    builder.store(value, slot)
            with cgutils.for_range_slice(builder, start, stop, loop.constant(1), loop.index) as (i, _):
                x = loop.row(xs, i)
                values = [loop.convert(x, place, shape, samples.dtype) for place in places]
                own = loop.row(factors, builder.add(first, builder.sub(i, start)))
                for column, line in zip(columns, slots, strict=True):
                    factor = loop.spread(builder.load(builder.gep(own, [column])), shape)
                    for value, slot in zip(values, line, strict=True):
                        builder.store(loop.multiply_add(value, factor, builder.load(slot)), slot)
            totals = []
            for row, line in zip(ends, slots, strict=True):  # all are loaded first: clamped classes stand twice
                for place, slot in zip(places, line, strict=True):
                    total = builder.load(slot)
                    whole = builder.fadd(loop.load(row, place, shape), total)
                    totals.append((builder.select(added, whole, total), row, place))
            for total, row, place in totals:
                loop.store(total, row, place, shape)

        vector = ir.VectorType(loop.scalar, lanes)
        for shape, vectors, step in ((vector, VECTORS, VECTORS * lanes), (vector, 1, lanes), (loop.scalar, 1, 1)):
            length = builder.sub(hi, lo)
            end = builder.add(lo, builder.sub(length, builder.srem(length, loop.constant(step))))
            with cgutils.for_range_slice(builder, lo, end, loop.constant(step), loop.index) as (d, _):
                tile(d, shape, vectors)
            lo = end
        return context.get_dummy_value()

    return types.void(stack, residual, samples, *[types.intp] * 10), generate


push_products: Any = intrinsic(_push_products)
