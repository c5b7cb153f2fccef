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

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hpcps_kernels.cpu._vectors import FEATURES, VECTOR_BYTES, Loop, Value

ROWS = 4
# The sums, a vector of each row and one of a class must fit the registers: x86 has 16 of them up to AVX2.
CLASSES = 2 if FEATURES.get("sse2") and not FEATURES.get("avx512f") else 5


def _tile(build: Callable[..., None], samples_at: int, rows: int, classes: int) -> Any:
    """An intrinsic over three matrices and (i, k, lo, hi): first sample, first class, range of features."""

    def typed(typing_context: Any, a: Any, b: Any, c: Any, i: Any, k: Any, lo: Any, hi: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            loop = Loop(context, builder, a.dtype)
            samples = signature.args[samples_at].dtype
            matrices = [
                context.make_array(t)(context, builder, value)
                for t, value in zip(signature.args[:3], arguments[:3], strict=True)
            ]
            build(loop, matrices, samples, arguments[3:], rows, classes)
            return context.get_dummy_value()

        return types.void(a, b, c, *[types.intp] * 4), generate

    return intrinsic(typed)


def _add_scores(loop: Loop, matrices: list[Any], dtype: Any, place: list[Value], rows: int, classes: int) -> None:
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


def _add_products(loop: Loop, matrices: list[Any], dtype: Any, place: list[Value], rows: int, classes: int) -> None:
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
