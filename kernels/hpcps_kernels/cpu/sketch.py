"""How often keys came, in memory that does not grow. Bound by random lines, one a row of counters."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.cpu._prefetch import prefetch
from hpcps_kernels.cpu.hash import fmix64
from hpcps_kernels.interface import Array
from hpcps_kernels.reference.sketch import MOST

AHEAD = 8  # keys between the one that is counted and the one whose counters are sent for


@kernel
def sketch_count(counts: Array, counters: Array, keys: Array) -> None:
    depth, cells, m = counters.shape[0], counters.shape[1], keys.shape[0]
    if depth == 0 or cells == 0 or cells & (cells - 1):
        raise ValueError("sketch_count: counters must be rows of a power of two")
    for i in range(m):
        soon = fmix64(np.uint64(keys[min(i + AHEAD, m - 1)]))
        for d in range(depth):
            prefetch(counters, d, _cell(soon, d, cells))
        h = fmix64(np.uint64(keys[i]))
        least: Any = MOST
        for d in range(depth):
            least = min(least, np.int64(counters[d, _cell(h, d, cells)]))
        count = min(least + 1, MOST)
        for d in range(depth):
            cell = _cell(h, d, cells)
            counters[d, cell] = max(np.int64(counters[d, cell]), count)
        counts[i] = count


@part
def _cell(h: Any, row: int, cells: int) -> Any:
    step = (h >> np.uint64(32)) | np.uint64(1)
    return np.int64((h + np.uint64(row) * step) & np.uint64(cells - 1))
