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


def _moved(kernel: str, m: int, n: int, w: int, dtype: str) -> Case:
    return Case(kernel, {"m": m, "N": n, "W": w}, {"A": dtype}, make={"index": below(n)})


def _leading(m: int, n: int, w: int, beside: int, dtype: str) -> Case:
    return Case("gather_leading", {"m": m, "N": n, "W": w, "P": w + beside}, {"A": dtype}, make={"index": below(n)})


def _added_fixed(m: int, n: int, w: int, dtype: str) -> Case:
    lengths, make = {"m": m, "N": n, "W": w}, {"index": below(n)}
    return Case("scatter_add_rows_fixed", lengths, {"F": dtype}, {"scale": 2.0**30 / 3}, make)


def _localized(n: int, keys: int, dtype: str) -> Case:
    make = {"x": below(keys), "slots": lambda shape, dtype, rng: np.full(shape, -1)}
    return Case("localize", {"n": n, "R": keys}, {"I": dtype}, make=make)


def _unique(n: int, note: str, x) -> Case:
    return Case("unique", {"n": n}, make={"x": lambda shape, dtype, rng: x(rng, shape)}, note=note)


MOVES = ("gather_rows", "scatter_rows", "scatter_add_rows")
ROW_SIZES = [(0, 5, 3), (0, 0, 2), (3, 2, 0), (1, 1, 1), (2500, 40, 1), (40, 30, 7), (64, 100, 16), (99, 11, 61)]
LOCALIZED = [(0, 0), (1, 1), (50, 7), (1500, 4000)]  # keys, of so many
EXTREMES = np.iinfo(np.int64)
KEYS = {
    "few": lambda rng, shape: rng.integers(-3, 3, shape),
    "dense": lambda rng, shape: rng.integers(-1000, 1000, shape),
    "any": lambda rng, shape: rng.integers(EXTREMES.min, EXTREMES.max, shape, endpoint=True),
    "upper bits": lambda rng, shape: rng.integers(-1000, 1000, shape) << 52,
    "tables": lambda rng, shape: (rng.integers(0, 5, shape) << 58) + rng.integers(0, 3000, shape) * 7,
    "low bits differ": lambda rng, shape: (rng.integers(-9, 9, shape) << 59) ^ (3 ** rng.integers(0, 25, shape)),
    "zipf": lambda rng, shape: rng.zipf(1.2, shape),
}

CASES = [
    *(
        Case("gather", {"m": m, "N": n, "D": d}, {"F": dtype, "S": stored}, make={"index": below(n)})
        for m, n, d in SIZES
        for stored in _stored(m)
        for dtype in FLOATS
    ),
    *(_csr(*size, values, dtype) for size in SIZES for values in FLOATS for dtype in FLOATS),
    *(_moved(kernel, *size, dtype) for kernel in MOVES for size in ROW_SIZES for dtype in (*FLOATS, "int64")),
    *(_leading(*size, beside, dtype) for size in ROW_SIZES for beside in (0, 1, 33) for dtype in (*FLOATS, "int64")),
    *(_added_fixed(*size, dtype) for size in ROW_SIZES for dtype in FLOATS),
    *(
        _localized(n, keys, dtype)
        for n, keys in [(0, 0), (1, 1), (50, 7), (1500, 4000)]
        for dtype in ("int32", "int64")
    ),
    *(_unique(n, note, x) for note, x in KEYS.items() for n in (0, 1, 2, 45, 3001)),
]
