"""Sums of products in float64 whose order is written out: element i belongs to lane i modulo LANES.

The pattern is the same on every CPU; LLVM cuts the vectors to the width that there is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hpcps_kernels.cpu._jit import part
from hpcps_kernels.interface import Array

WIDTH, VECTORS = 8, 4
LANES = WIDTH * VECTORS  # as in reference/reduce.py


@part
def sum_of_products(x: Array, y: Array) -> float:
    lanes = np.zeros(LANES)
    whole = x.shape[0] // LANES * LANES
    add_whole_lanes(lanes, x, y, whole)
    for i in range(whole, x.shape[0]):
        lanes[i - whole] += np.float64(x[i]) * np.float64(y[i])
    half = LANES // 2
    while half > 0:
        for lane in range(half):
            lanes[lane] += lanes[lane + half]
        half //= 2
    return float(lanes[0])


def _add_whole_lanes(typing_context: Any, lanes: Any, x: Any, y: Any, count: Any) -> Any:
    """lanes[i % LANES] += x[i] * y[i] for the first `count` elements, a multiple of LANES, in ascending order."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, *factors = (
            context.make_array(t)(context, builder, value).data
            for t, value in zip(signature.args[:3], arguments[:3], strict=True)
        )
        double = ir.VectorType(ir.DoubleType(), WIDTH)
        stored = ir.VectorType(context.get_data_type(x.dtype), WIDTH)
        index = context.get_value_type(types.intp)

        def at(data: Any, i: Any, shape: Any) -> Any:
            return builder.bitcast(builder.gep(data, [i]), shape.as_pointer())

        def load(data: Any, i: Any) -> Any:
            vector = builder.load(at(data, i, stored), align=x.dtype.bitwidth // 8)
            return vector if stored == double else builder.fpext(vector, double)

        places = [at(sums, index(v * WIDTH), double) for v in range(VECTORS)]
        slots = [cgutils.alloca_once(builder, double) for _ in places]  # type: ignore[no-untyped-call]
        for slot, place in zip(slots, places, strict=True):
            builder.store(builder.load(place, align=8), slot)
        with cgutils.for_range_slice(builder, index(0), arguments[3], index(LANES), index) as (start, _):
            for v, slot in enumerate(slots):
                i = builder.add(start, index(v * WIDTH))
                product = builder.fmul(*[load(data, i) for data in factors])
                builder.store(builder.fadd(builder.load(slot), product), slot)
        for slot, place in zip(slots, places, strict=True):
            builder.store(builder.load(slot), place, align=8)
        return context.get_dummy_value()

    return types.void(lanes, x, y, types.intp), generate


add_whole_lanes: Any = intrinsic(_add_whole_lanes)
