from __future__ import annotations

import numpy as np

from kernel_cases import FLOATS, Case

SIZES = ((0, 3), (1, 1), (3, 0), (13, 17), (300, 64))  # keys, columns
NUMBERS = ((0, 0, 1.0), (7, 1, 0.01), (2**63 - 1, 0, 0.0), (-5, 9, 2.5))  # seed, zeros, scale
EXTREMES = np.iinfo(np.int64)


def _rows(k: int, width: int, dtype: str, seed: int, zeros: int, scale: float) -> Case:
    scalars = {"seed": seed, "zeros": zeros, "scale": scale}
    keys = {"keys": lambda shape, dtype, rng: rng.integers(EXTREMES.min, EXTREMES.max, shape, endpoint=True)}
    return Case("init_rows", {"k": k, "W": width}, {"F": dtype}, scalars, keys, note=f"zeros{zeros}-scale{scale:g}")


CASES = [_rows(*size, dtype, *numbers) for numbers in NUMBERS for size in SIZES for dtype in FLOATS]
