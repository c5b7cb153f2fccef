from __future__ import annotations

import numpy as np

from kernel_cases import Case

SIZES = ((0, 1, 1), (1, 1, 1), (50, 3, 2), (40, 1, 64), (500, 4, 256))  # keys, rows of counters, their length


def _counted(m: int, depth: int, cells: int, note: str, counters) -> Case:
    make = {
        "keys": lambda shape, dtype, rng: rng.integers(-m, m, shape) << 40,
        "counters": lambda shape, dtype, rng: counters(rng, shape),
    }
    return Case("sketch_count", {"m": m, "D": depth, "C": cells}, make=make, note=note)


FILLED = {
    "nearly full": lambda rng, shape: rng.integers(2**16 - 4, 2**16, shape),
    "some": lambda rng, shape: rng.integers(0, 5, shape),
    "empty": lambda rng, shape: np.zeros(shape),
}
CASES = [_counted(*size, note, counters) for note, counters in FILLED.items() for size in SIZES]
