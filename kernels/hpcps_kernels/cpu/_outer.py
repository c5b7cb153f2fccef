"""The inner loop of sums of outer products, with explicit vectors: ROWS by COLUMNS sums in registers, along samples.

Operands are packed: the rows' factors of one sample lie side by side, and so do the columns'. A sum takes the samples
one by one, so its bits depend neither on the tile that it is in nor on the width of vectors.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hpcps_kernels.cpu._vectors import FEATURES, VECTOR_BYTES, Loop

# The sums, the vectors of one sample and a factor must fit the registers: x86 has 16 of them up to AVX2.
_HAS_FEW = FEATURES.get("sse2") and not FEATURES.get("avx512f")
ROWS, VECTORS = (6, 2) if _HAS_FEW else (8, 3)
COLUMN_BYTES = VECTORS * VECTOR_BYTES


def _tile(is_added: bool) -> Any:
    """An intrinsic that overwrites a row of the first matrix, or adds to it: ROWS by COLUMNS sums.

    Sum (r, c) is that of factors[first + k, r] * panel[k, c] for k = lo .. hi - 1.
    """

    def typed(typing_context: Any, sums: Any, factors: Any, panel: Any, row: Any, first: Any, lo: Any, hi: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            loop = Loop(context, builder, sums.dtype)
            lanes = VECTOR_BYTES // loop.size
            vector = ir.VectorType(loop.scalar, lanes)
            out, left, right = (
                context.make_array(t)(context, builder, value)
                for t, value in zip(signature.args[:3], arguments[:3], strict=True)
            )
            row, first, lo, hi = arguments[3:]
            slots = [[loop.slot(vector) for _ in range(VECTORS)] for _ in range(ROWS)]
            for slot in (slot for line in slots for slot in line):
                builder.store(ir.Constant(vector, None), slot)
            with cgutils.for_range_slice(builder, lo, hi, loop.constant(1), loop.index) as (k, _):
                x = loop.row(right, k)
                xs = [loop.load(x, loop.constant(v * lanes), vector) for v in range(VECTORS)]
                line = loop.row(left, builder.add(first, k))
                for r, sums_of_row in enumerate(slots):
                    factor = loop.spread(builder.load(builder.gep(line, [loop.constant(r)])), vector)
                    for value, slot in zip(xs, sums_of_row, strict=True):
                        builder.store(loop.multiply_add(factor, value, builder.load(slot)), slot)
            into = loop.row(out, row)
            for number, slot in enumerate(slot for line in slots for slot in line):
                place = loop.constant(number * lanes)
                total = builder.load(slot)
                if is_added:
                    total = builder.fadd(loop.load(into, place, vector), total)
                loop.store(total, into, place, vector)
            return context.get_dummy_value()

        return types.void(sums, factors, panel, *[types.intp] * 4), generate

    return intrinsic(typed)


outer_products = _tile(False)
add_outer_products = _tile(True)
