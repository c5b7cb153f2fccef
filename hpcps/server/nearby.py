"""Sections that do not travel: they lie in memory that a rank and a peer on its node see."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import numpy as np

from hpcps.comm.memory import Lent, Memory, array_at
from hpcps.comm.transport import Array
from hpcps.errors import CommError
from hpcps.faster import PAST, Faster
from hpcps.server.messages import Copy

Place = tuple[int, int]
"""The number of a region, from 1, and the offset in bytes in a rank's piece of it: as in a letter's header."""
TRAVELS: Place = (0, 0)
TIMED_BYTES = 4096
"""Fewer take less than to decide how to write them."""


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


class Lending:
    """Memory in which a rank writes keys and rows for a peer on its node, in two places by turns: what is in one may be
    looked at while the other is written to."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._rooms: list[Lent | None] = [None, None]
        self._is_out = False

    def room(self, size_bytes: int) -> Lent | None:
        """Memory of at least so many bytes, the one that was not given last; None, from then on, where there is too
        little."""
        if self._is_out:
            return None
        self._rooms.reverse()
        room = self._rooms[0]
        if room is None or len(room.array) < size_bytes:
            try:
                room = self._rooms[0] = self._memory.lend(size_bytes + size_bytes // 4)
            except CommError:  # then they travel
                self._is_out, room = True, None
        return room


def for_others(stream: Copy) -> Copy:
    """Copies bytes, (n,) uint8, to where another core reads, in place or by the kernel ``stream``, past the caches,
    whichever is faster for about so many: up to twenty times. Few, and what is no multiple of 4, are written in
    place."""
    by_size: defaultdict[int, Faster] = defaultdict(Faster)

    def copy(out: Array, x: Array) -> None:
        if len(x) < TIMED_BYTES or len(x) % 4:
            out[:] = x
            return
        faster = by_size[len(x).bit_length()]
        began = time.perf_counter()
        if faster.way == PAST:
            stream(out.view(np.float32), x.view(np.float32))
        else:
            out[:] = x
        faster.took((time.perf_counter() - began) / len(x))

    return copy


class Borrowed:
    """Memory of ``peer`` in which it writes what this rank is to look at."""

    def __init__(self, memory: Memory | None, peer: int) -> None:
        self._memory = memory
        self._peer = peer
        self._known: dict[bytes, Array] = {}

    def section(self, ticket: Array, size_bytes: int) -> Array:
        """The first bytes of what a ticket stands for. Raises CommError where there are fewer, or none are seen."""
        text = ticket.tobytes()
        if text not in self._known:
            if self._memory is None:
                raise CommError(f"rank {self._peer} lends memory of its own, which is not seen here")
            while len(self._known) > 1:  # the peer has two
                del self._known[next(iter(self._known))]
            self._known[text] = self._memory.borrow(ticket)
        found = self._known[text][:size_bytes]
        if len(found) < size_bytes:
            raise CommError(f"rank {self._peer} lends {len(found)} bytes for a section of {size_bytes}")
        return found


def letter_memory(memory: Memory | None, peer: int) -> Memory | None:
    """The memory by which long letters to and from a peer need not travel; None where it is not on this node."""
    return memory if memory is not None and peer in memory.nodes[memory.node] else None


def nearby(memory: Memory | None, peer: int) -> Nearby | None:
    """The memory shared with a peer; None where there is none."""
    if memory is None or peer not in memory.nodes[memory.node]:
        return None
    return Nearby(memory, peer)
