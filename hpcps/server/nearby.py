"""Dense sections that do not travel: arrays named by their place in memory that a rank and a peer on its node see."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcps.comm.memory import Memory, array_at
from hpcps.comm.transport import Array
from hpcps.errors import CommError

Place = tuple[int, int]
"""The number of a region, from 1, and the offset in bytes in a rank's piece of it: as in a letter's header."""
TRAVELS: Place = (0, 0)


class Nearby:
    """The memory that this rank and ``peer`` see, both ranks of the transport that ``memory`` was made for."""

    def __init__(self, memory: Memory, peer: int) -> None:
        self._regions = memory.regions
        self._mine = memory.near.rank
        self._peers = memory.nodes[memory.node].index(peer)

    def place_of(self, array: Array) -> Place:
        """Where the peer finds an array of this rank; TRAVELS where it does not see it."""
        if array.flags.c_contiguous and array.size:
            address = array.ctypes.data
            for number, (size_bytes, starts) in enumerate(self._regions):
                offset = address - starts[self._mine]
                if 0 <= offset <= size_bytes - array.nbytes:
                    return number + 1, offset
        return TRAVELS

    def array_at(self, place: Place, count: int, dtype: np.dtype[Any]) -> Array:
        """The peer's array, (count,), at such a place. Raises CommError where that is outside what both see."""
        region, offset = place
        size_bytes, starts = self._regions[region - 1] if 0 < region <= len(self._regions) else (0, [])
        if not 0 <= offset <= size_bytes - count * dtype.itemsize or offset % dtype.itemsize:
            raise CommError(f"{count} numbers cannot lie at {offset} in region {region} of {size_bytes} bytes")
        return array_at(starts[self._peers] + offset, count * dtype.itemsize).view(dtype)


def nearby(memory: Memory | None, peer: int) -> Nearby | None:
    """The memory shared with a peer; None where there is none."""
    if memory is None or peer not in memory.nodes[memory.node]:
        return None
    return Nearby(memory, peer)
