from __future__ import annotations

import numpy as np

from kernel_cases import FLOATS, Case, below

LENGTHS = (0, 1, 7, 16, 17, 1000, 4097)

CASES = [
    *(Case("add_into", {"n": n}, {"A": dtype}) for n in LENGTHS for dtype in (*FLOATS, "int64")),
    *(
        Case(kernel, {"n": n}, {"F": dtype})
        for kernel in ("max_abs", "all_finite")
        for n in LENGTHS
        for dtype in FLOATS
    ),
    *(
        Case("sum_into", {"P": p, "n": n}, {"A": dtype})
        for p, n in [*((3, n) for n in LENGTHS), *((p, 33) for p in (0, 1, 2, 4, 5, 6, 7, 8, 9)), (7, 4097)]
        for dtype in (*FLOATS, "int64")
    ),
    *(
        Case(
            "sum_tree",
            {"M": left, "R": 4, "n": n, "P": len(adds)},
            {"A": dtype},
            make={"rows": below(4), "adds": lambda shape, dtype, rng, adds=adds: np.array(adds)},
            note="".join(map(str, adds)),
        )
        for adds, left in (((), 0), ((0,), 1), ((0, 1), 1), ((0, 0, 0, 1), 3), ((0, 1, 0, 2, 1), 1), ((0, 0, 0, 3), 1))
        for n in (0, 1, 1023, 1024, 1025, 3000)
        for dtype in (*FLOATS, "int64")
    ),
    *(Case("axpy", {"n": n}, {"F": dtype}, {"a": -0.3}) for n in LENGTHS for dtype in FLOATS),
    *(
        Case(kernel, {"n": n}, {"F": dtype})
        for kernel in ("dot", "square_norm")
        for n in (*LENGTHS, 31, 32, 33, 63, 64, 65)
        for dtype in FLOATS
    ),
    *(
        Case(kernel, {"n": n}, {"F": dtype}, {"scale": 2.0**20 / 3})
        for kernel in ("add_fixed", "from_fixed")
        for n in LENGTHS
        for dtype in FLOATS
    ),
]
