from __future__ import annotations

import numpy as np

from kernel_cases import FLOATS, Case, below

SIZES = [(0, 5, 3), (1, 1, 1), (13, 7, 17), (64, 100, 33)]  # picked, in the source, features
STORED = ("uint8", "int8", "int16", "int32", "int64", *FLOATS)


def _stored(m: int) -> tuple[str, ...]:
    return STORED if m == 13 else FLOATS


def _csr(m: int, n: int, d: int, values: str, dtype: str) -> Case:
    entries = n * d // 2
    make = {
        "index": below(n),
        "indptr": lambda shape, dtype, rng: np.linspace(0, entries, n + 1).astype(dtype),
        "indices": lambda shape, dtype, rng: np.arange(entries) % d,
    }
    return Case("gather_csr", {"m": m, "N": n, "D": d, "nnz": entries}, {"F": dtype, "V": values}, make=make)


CASES = [
    *(
        Case("gather", {"m": m, "N": n, "D": d}, {"F": dtype, "S": stored}, make={"index": below(n)})
        for m, n, d in SIZES
        for stored in _stored(m)
        for dtype in FLOATS
    ),
    *(_csr(*size, values, dtype) for size in SIZES for values in FLOATS for dtype in FLOATS),
]
