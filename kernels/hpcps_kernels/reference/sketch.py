"""How often keys came, in memory that does not grow: a count-min sketch with conservative updates.

(Cormode and Muthukrishnan 2005, "An improved data stream summary: the count-min sketch and its applications"; Estan and
Varghese 2002, "New directions in traffic measurement and accounting".) Counters are (D, C) uint16, C a power of two; a
key has a counter in each of the D rows. The smallest of them is at least as large as the key's count, and larger only
where others have counted up all D. Only counters that are the smallest are counted up.
"""

from __future__ import annotations

import numpy as np

from hpcps_kernels.interface import Array
from hpcps_kernels.reference.hash import MASK_64, fmix64

MOST = 2**16 - 1


def sketch_count(counts: Array, counters: Array, keys: Array) -> None:
    """Count each key once, one after the other; counts[i] = how often keys[i] has come by then, at most 65535.

    counts (m,) int64 is overwritten; counters (D, C) uint16 are updated: cell (h + d * step) modulo C of row d, with
    h = fmix64(key) and step = h // 2^32, made odd (Kirsch and Mitzenmacher 2006); keys (m,) int64, any values, may
    repeat. Raises ValueError, before anything is written, unless D is at least 1 and C a power of two.
    """
    depth, cells = counters.shape
    if depth == 0 or cells.bit_count() != 1:
        raise ValueError("sketch_count: counters must be rows of a power of two")
    rows = np.arange(depth)
    for i, key in enumerate(keys.tolist()):
        h = fmix64(key & MASK_64)
        own = rows, np.array([(h + d * (h >> 32 | 1)) % cells for d in range(depth)])
        least = int(counters[own].min())
        counts[i] = min(least + 1, MOST)
        counters[own] = np.maximum(counters[own], counts[i])
