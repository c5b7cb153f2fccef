"""All-reduce by recursive doubling: few messages, each of the whole array, for arrays of few bytes.

Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", 2005, section 4.4.
"""

from __future__ import annotations

import numpy as np

from hpcps.comm.pending import Pending, Steps, run
from hpcps.comm.ring import AddInto
from hpcps.comm.transport import Array, Transport


def allreduce(transport: Transport, x: Array, add_into: AddInto) -> None:
    """Sum ``x`` (one-dimensional, the same length and dtype everywhere) over the ranks, in place.

    Cost: log2 P steps and n log2 P elements sent by each rank; where P is no power of two, two steps more. Both ranks
    of a pair add the same two sums, and addition is commutative: all ranks end with the same bits, which depend on
    the rank count unless addition is exact. Blocks.
    """
    run(transport, allreduce_steps(transport, x, add_into))


class DoublingAllreduce:
    """All-reduces one after another or several at once, each in two halves: start it, work, wait for it."""

    name = "recursive doubling"

    def __init__(self, transport: Transport, add_into: AddInto) -> None:
        self._transport = transport
        self._add_into = add_into

    def start(self, x: Array) -> Pending:
        """Begin :func:`allreduce` of ``x``, which may not be touched before the wait."""
        return Pending(self._transport, allreduce_steps(self._transport, x, self._add_into))


def allreduce_steps(transport: Transport, x: Array, add_into: AddInto) -> Steps:
    """The steps of :func:`allreduce`. The tag of its messages is taken by this call, not by its first step."""
    return _steps(transport, transport.collective_tag(), x, add_into) if len(x) else iter(())


def _steps(transport: Transport, tag: int, x: Array, add_into: AddInto) -> Steps:
    """The first ``2 * extra`` ranks fold in pairs: the even one hands its array to the odd one, which doubles for both.
    What is left is a power of two, numbered anew."""
    rank = transport.rank
    doubling = 1 << (transport.size.bit_length() - 1)
    extra = transport.size - doubling
    is_folded = rank < 2 * extra
    if is_folded and rank % 2 == 0:
        yield (transport.isend(x, rank + 1, tag),)
        yield (transport.irecv(x, rank + 1, tag),)
        return
    arrived = np.empty_like(x)
    if is_folded:
        yield (transport.irecv(arrived, rank - 1, tag),)
        add_into(x, arrived)
    number = rank // 2 if is_folded else rank - extra
    distance = 1
    while distance < doubling:
        other = number ^ distance
        peer = 2 * other + 1 if other < extra else other + extra
        yield transport.irecv(arrived, peer, tag), transport.isend(x, peer, tag)
        add_into(x, arrived)
        distance *= 2
    if is_folded:
        yield (transport.isend(x, rank - 1, tag),)
