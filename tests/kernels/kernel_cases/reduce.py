from __future__ import annotations

from kernel_cases import FLOATS, Case

LENGTHS = (0, 1, 7, 16, 17, 1000, 4097)

CASES = [
    *(Case("add_into", {"n": n}, {"A": dtype}) for n in LENGTHS for dtype in (*FLOATS, "int64")),
    *(Case("max_abs", {"n": n}, {"F": dtype}) for n in LENGTHS for dtype in FLOATS),
    *(
        Case(kernel, {"n": n}, {"F": dtype}, {"scale": 2.0**20 / 3})
        for kernel in ("add_fixed", "from_fixed")
        for n in LENGTHS
        for dtype in FLOATS
    ),
]
