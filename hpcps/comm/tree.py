"""Sums of the pieces of all ranks in a fixed order, by direct exchange.

Every rank brings some arrays of one length, its pieces; all pieces are added in the order that the caller gives, so the
bits of the sum depend on that order alone, not on the rank count (:mod:`hpcps.comm.order`).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import numpy as np
from numpy.typing import DTypeLike

from hpcps.comm.order import Order
from hpcps.comm.pending import Pending, Steps
from hpcps.comm.topology import chunk_bounds, slices
from hpcps.comm.transport import Array, Ticket, Transport

SMALL_BYTES = 32 << 10
"""Arrays of up to so many bytes take the form with fewer messages."""
SumTree = Callable[[Array, Array, Array, Array], object]
"""``sum_tree(out, xs, rows, adds)``: the kernel of this name."""


class TreeAllreduce:
    """Sums of arrays of ``count`` elements of ``dtype``, of which rank r brings ``order.counts[r]``; one at a time.

    Cost, of R pieces in all, m of them on this rank: 2 (P - 1) messages with (m + 1) n (P - 1) / P elements sent by
    each rank, R n / P elements added. Every rank sends its pieces of chunk c to rank c, which adds all of them up and
    sends the sum to everybody. Arrays of up to ``small_bytes``: P - 1 messages, m n (P - 1) elements, R n added;
    everybody sends all pieces to everybody. All ranks get the same bits, in both forms.
    """

    name = "tree"

    def __init__(
        self,
        transport: Transport,
        order: Order,
        count: int,
        dtype: DTypeLike,
        sum_tree: SumTree,
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        size, rank = transport.size, transport.rank
        self._transport = transport
        self._sum_tree = sum_tree
        self._is_small = count * np.dtype(dtype).itemsize <= small_bytes
        chunks = slices(chunk_bounds(count, size))
        self._chunks = [slice(0, count)] * size if self._is_small else chunks
        self._of_rank = slices([0, *accumulate(order.counts)])
        self._rows = np.arange(len(order.adds))
        self._adds = np.array(order.adds, np.int64)
        length = self._chunks[rank].stop - self._chunks[rank].start
        self._arrived = np.empty((len(order.adds), length), dtype)

    def start(self, pieces: Array) -> Pending:
        """Begin to sum ``pieces`` (m, count), not to be touched before the wait; then the first row holds the sum."""
        return Pending(self._transport, self._steps(pieces, self._transport.collective_tag()))

    def _steps(self, pieces: Array, tag: int) -> Steps:
        """Bring the pieces of a chunk together, add them up, and give out the sum."""
        rank, others = self._transport.rank, self._others()
        self._arrived[self._of_rank[rank]] = pieces[:, self._chunks[rank]]
        outgoing = [np.ascontiguousarray(pieces[:, self._chunks[other]]) for other in others]
        receives = [self._receive(self._arrived[self._of_rank[other]], other, tag) for other in others]
        sends = [self._send(mine, other, tag) for mine, other in zip(outgoing, others, strict=True)]
        yield *receives, *sends
        total = pieces[:1, self._chunks[rank]]
        self._sum_tree(total, self._arrived, self._rows, self._adds)
        if not self._is_small:
            receives = [self._receive(pieces[0, self._chunks[other]], other, tag) for other in others]
            yield *receives, *[self._send(total, other, tag) for other in others]

    def _others(self) -> list[int]:
        """The other ranks, beginning with the next, so that not all send to the same one first."""
        rank, size = self._transport.rank, self._transport.size
        return [(rank + step) % size for step in range(1, size)]

    def _receive(self, buffer: Array, source: int, tag: int) -> Ticket:
        return self._transport.irecv(buffer.reshape(-1), source, tag)

    def _send(self, buffer: Array, to: int, tag: int) -> Ticket:
        return self._transport.isend(buffer.reshape(-1), to, tag)
