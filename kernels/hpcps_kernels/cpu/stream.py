"""Copies past the caches."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hpcps_kernels.cpu._jit import kernel
from hpcps_kernels.cpu._memory import address_of
from hpcps_kernels.cpu._past import settle, store_past
from hpcps_kernels.cpu._vectors import VECTOR_BYTES
from hpcps_kernels.interface import Array


@kernel
def stream(out: Array, x: Array) -> None:
    n, lanes = x.shape[0], VECTOR_BYTES // x.itemsize
    first = min(n, -address_of(out) % VECTOR_BYTES // x.itemsize)
    stop = first + (n - first) // lanes * lanes
    for i in range(first):
        out[i] = x[i]
    for i in range(first, stop, lanes):
        _copy_past(out, x, i)
    for i in range(stop, n):
        out[i] = x[i]
    settle()


def _copy(typing_context: Any, out: Any, x: Any, i: Any) -> Any:
    """Copy the vector at i, which begins with a vector in ``out``'s memory, to there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, of = (context.make_array(signature.args[k])(context, builder, arguments[k]) for k in range(2))
        shape = ir.VectorType(context.get_data_type(x.dtype), VECTOR_BYTES // (x.dtype.bitwidth // 8))
        places = [builder.bitcast(builder.gep(one.data, [arguments[2]]), shape.as_pointer()) for one in (of, to)]
        store_past(builder, builder.load(places[0], align=x.dtype.bitwidth // 8), places[1])
        return context.get_dummy_value()

    return types.void(out, x, types.intp), generate


_copy_past: Any = intrinsic(_copy)
