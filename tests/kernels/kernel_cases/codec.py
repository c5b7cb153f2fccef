from __future__ import annotations

from kernel_cases import FLOATS, Case

LENGTHS = (0, 1, 7, 16, 17, 1000, 4097)
BLOCKS = [(0, 4), (1, 1), (1, 64), (64, 64), (65, 64), (1000, 37), (5000, 2048)]  # elements, of a block
PICKED = [(0, 0), (0, 5), (1, 1), (3, 100), (100, 100), (50, 4097), (4000, 4097)]  # taken, of


def _halves(shape, dtype, rng):
    return rng.standard_normal(shape).astype("float16").view("uint16")


def _any_code(shape, dtype, rng):
    return rng.integers(-127, 128, shape)


def _quantize(kernel: str, n: int, block: int, rounding: str) -> Case:
    scalars = {"block": block, "rounding": rounding, "seed": 2**63 + 5, "counter": 2**32 - 3 + n % 2}
    return Case(kernel, {"n": n, "blocks": -(-n // block)}, scalars=scalars)


CASES = [
    *(Case(f"to_{kind}", {"n": n}) for kind in ("bfloat16", "float16") for n in LENGTHS),
    *(Case(f"from_{kind}", {"n": n}, make={"x": _halves}) for kind in ("bfloat16", "float16") for n in LENGTHS),
    *(
        _quantize(kernel, *size, rounding)
        for kernel in ("quantize_int8", "quantize_int8_feedback")
        for size in BLOCKS
        for rounding in ("nearest", "stochastic")
    ),
    *(
        Case(kernel, {"n": n, "blocks": -(-n // block)}, scalars={"block": block}, make={"codes": _any_code})
        for kernel in ("dequantize_int8", "dequantize_add_int8")
        for n, block in BLOCKS
    ),
    *(Case("top_k", {"k": k, "n": n}, {"F": dtype}) for k, n in PICKED for dtype in FLOATS),
]
