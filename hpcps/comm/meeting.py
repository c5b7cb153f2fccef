"""``hpcps.together.Together`` over a transport."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hpcps.comm import ring
from hpcps.comm.transport import Array, Transport
from hpcps.together import agree


class Meeting:
    """The ranks of a transport, sharing small facts. Both methods are collectives: all ranks call them in one order."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.rank = transport.rank
        self.size = transport.size

    def gather(self, values: Array) -> Array:
        """One-dimensional arrays of any length and one dtype: all of them, joined in rank order."""
        counts = np.zeros(self.size, np.int64)
        counts[self.rank] = len(values)
        ring.all_gather(self.transport, counts)
        bounds = [0, *np.cumsum(counts).tolist()]
        joined = np.empty(bounds[-1], values.dtype)
        joined[bounds[self.rank] : bounds[self.rank + 1]] = values
        ring.all_gather(self.transport, joined, bounds)
        return joined

    def once(self, make: Callable[[], Array]) -> Array:
        """Call ``make`` on rank 0 and give its one-dimensional array to all. Its HpcpsError is raised on all."""
        made = agree(self, lambda: np.ascontiguousarray(make()) if self.rank == 0 else None)
        kind = np.frombuffer(made.dtype.str.encode() if made is not None else b"", np.uint8)
        dtype = np.dtype(self.gather(kind).tobytes().decode())
        return self.gather(made if made is not None else np.empty(0, dtype))
