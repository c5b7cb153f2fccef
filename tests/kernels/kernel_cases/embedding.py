from __future__ import annotations

import numpy as np
from hpcps_kernels.spec import BAG_MODES

from kernel_cases import FLOATS, NOTHING, Case, below

SIZES = [(0, 4, 3, 0), (3, 2, 1, 0), (1, 1, 1, 1), (5, 3, 7, 40), (9, 20, 17, 60), (4, 9, 64, 33), (33, 50, 127, 300)]


def cuts(entries: int):
    """Where samples begin and end, some of them empty."""

    def make(shape, dtype, rng) -> np.ndarray:
        inner = np.sort(rng.integers(0, entries + 1, max(shape[0] - 2, 0)))
        return np.r_[0, inner, entries][: shape[0]]

    return make


def _case(kernel: str, size: tuple[int, ...], dtype: str, mode: str, values: bool) -> Case:
    n, k, w, entries = size
    lengths = {"n": n, "k": k, "W": w, "nnz": entries} | ({} if values else {"values": NOTHING})
    make = {"indptr": cuts(entries), "indices": below(k)}
    return Case(kernel, lengths, {"F": dtype}, {"mode": mode}, make)


CASES = [
    _case(kernel, size, dtype, mode, values)
    for kernel in ("bag_forward", "bag_backward")
    for mode in BAG_MODES
    for size in SIZES
    for dtype in FLOATS
    for values in (False, True)
]
