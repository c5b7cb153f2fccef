from __future__ import annotations

import numpy as np
from hpcps_kernels import load

from kernel_cases import Case

SIZES = [(0, 1), (1, 2), (5, 16), (77, 128), (300, 1024)]  # keys, cells
HELD = 0.4  # of the cells


def held(cells: int) -> int:
    return int(HELD * cells)


def table(shape, dtype, rng) -> np.ndarray:
    """Some even keys, in slots 0, 1, ..."""
    made = np.empty(shape, dtype)
    keys = rng.permutation(2 * len(made))[: held(len(made))] * 2 - len(made)
    load("reference").index_clear(made)
    load("reference").index_insert(np.empty_like(keys), made, keys, 0)
    return made


def some_keys(cells: int):
    """Some that the table holds, some that it does not, some twice."""
    return lambda shape, dtype, rng: rng.integers(0, max(cells // 4, 1), shape) * 6 - cells


CASES = [
    *(Case("index_clear", {"C": cells}) for _, cells in SIZES),
    *(
        Case("index_find", {"m": m, "C": cells}, make={"table": table, "keys": some_keys(cells)})
        for m, cells in [*SIZES, (2000, 64)]
    ),
    *(
        Case(
            "index_insert",
            {"m": m, "C": cells},
            scalars={"count": held(cells)},
            make={"table": table, "keys": some_keys(cells)},
        )
        for m, cells in SIZES
    ),
    *(
        Case("index_grow", {"C2": new, "C": cells}, make={"table": table})
        for new, cells in [(1, 1), (4, 2), (64, 16), (128, 128), (64, 128), (4096, 1024)]
    ),
]
