from __future__ import annotations

import numpy as np
from hpcps_kernels import SPECS
from hpcps_kernels.specs.packed import states

from kernel_cases import FLOATS, Case
from kernel_cases.update import SCALARS, TABLES, _distinct, _numbers

PACKED = {kernel: states(SPECS[f"{kernel}_rows"]) for kernel in SCALARS if f"{kernel}_packed" in SPECS}


def _case(kernel: str, k: int, n: int, w: int, dtype: str) -> Case:
    def table(shape, dtype, rng) -> np.ndarray:
        params, beside = rng.standard_normal((n, w)), rng.random((n, w * PACKED[kernel])) + 0.01
        return np.concatenate([params, beside], axis=1)

    lengths = {"k": k, "N": n, "W": w, "P": w * (1 + PACKED[kernel])}
    make = {"table": table, "index": _distinct(n)}
    return Case(f"{kernel}_packed", lengths, {"F": dtype}, _numbers(kernel, k % 2 > 0), make)


CASES = [_case(kernel, *size, dtype) for kernel in PACKED for size in TABLES for dtype in FLOATS]
