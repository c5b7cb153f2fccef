"""Collectives along a ring of ranks: reduce-scatter, all-gather, and the all-reduce that they make together.

Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009. Each collective is
written once, as a generator that starts messages and yields the tickets to be waited for; :func:`run` waits for
them, and :class:`Pending` lets the caller work between the start and the wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hpcps.comm.topology import chunk_bounds, left, right, slices
from hpcps.comm.transport import Array, Ticket, Transport

REDUCE_TAG = 2
GATHER_TAG = 3

AddInto = Callable[[Array, Array], object]
Steps = Iterator[tuple[Ticket, ...]]


def reduce_scatter(transport: Transport, x: Array, add_into: AddInto) -> slice:
    """Sum ``x`` (one-dimensional, the same length and dtype everywhere) over the ranks; each rank gets one chunk.

    Cost: P - 1 steps, n (P - 1) / P elements sent by each rank. Chunk c is summed in ring order, beginning with
    rank c + 1's; its sum stands on rank c alone. Returns the slice of ``x`` that holds this rank's sum; the rest
    of ``x`` is overwritten. Blocks.
    """
    run(transport, reduce_scatter_steps(transport, x, add_into))
    return slices(chunk_bounds(len(x), transport.size))[transport.rank]


def all_gather(transport: Transport, x: Array, bounds: Sequence[int] | None = None) -> None:
    """Fill ``x`` on every rank with the chunks of all: rank r brings ``x[bounds[r]:bounds[r + 1]]``.

    ``bounds`` defaults to equal chunks. Cost: P - 1 steps, at most n elements sent by each rank. All ranks end
    with the same bits. Blocks.
    """
    run(transport, all_gather_steps(transport, x, bounds))


def allreduce(transport: Transport, x: Array, add_into: AddInto) -> None:
    """Sum ``x`` (one-dimensional, the same length and dtype everywhere) over the ranks, in place.

    Cost: 2 (P - 1) steps, 2 n (P - 1) / P elements sent by each rank. Chunk c is summed in ring order beginning with
    rank c + 1, then copied: all ranks end with the same bits, and the bits depend on the rank count unless addition
    is exact. Blocks.
    """
    run(transport, allreduce_steps(transport, x, add_into))


def run(transport: Transport, steps: Steps) -> None:
    """Take a collective from start to end."""
    for tickets in steps:
        transport.wait(*tickets)


class RingAllreduce:
    """All-reduces one after another, each in two halves: start it, work, wait for it."""

    name = "ring"

    def __init__(self, transport: Transport, add_into: AddInto) -> None:
        self._transport = transport
        self._add_into = add_into

    def start(self, x: Array) -> Pending:
        """Begin :func:`allreduce` of ``x``, which may not be touched before the wait."""
        return Pending(self._transport, allreduce_steps(self._transport, x, self._add_into))


class Pending:
    """A collective whose first messages have been sent; :meth:`wait` takes it to its end."""

    def __init__(self, transport: Transport, steps: Steps) -> None:
        self._transport = transport
        self._steps = steps
        self._first = next(steps, None)

    def wait(self) -> None:
        """Block until the collective is finished on this rank. A second call returns at once."""
        if self._first is not None:
            self._transport.wait(*self._first)
            self._first = None
            run(self._transport, self._steps)


def reduce_scatter_steps(transport: Transport, x: Array, add_into: AddInto) -> Steps:
    """The steps of :func:`reduce_scatter`."""
    size, rank = transport.size, transport.rank
    chunks = slices(chunk_bounds(len(x), size))
    arrived = np.empty(chunks[0].stop, x.dtype)
    for step in range(size - 1):
        outgoing = x[chunks[(rank - step - 1) % size]]
        mine = x[chunks[(rank - step - 2) % size]]
        receive = transport.irecv(arrived[: len(mine)], left(rank, size), REDUCE_TAG)
        send = transport.isend(outgoing, right(rank, size), REDUCE_TAG)
        yield receive, send
        add_into(mine, arrived[: len(mine)])


def all_gather_steps(transport: Transport, x: Array, bounds: Sequence[int] | None = None) -> Steps:
    """The steps of :func:`all_gather`."""
    size, rank = transport.size, transport.rank
    chunks = slices(list(bounds) if bounds is not None else chunk_bounds(len(x), size))
    for step in range(size - 1):
        outgoing = x[chunks[(rank - step) % size]]
        incoming = x[chunks[(rank - step - 1) % size]]
        receive = transport.irecv(incoming, left(rank, size), GATHER_TAG)
        send = transport.isend(outgoing, right(rank, size), GATHER_TAG)
        yield receive, send


def allreduce_steps(transport: Transport, x: Array, add_into: AddInto) -> Steps:
    """The steps of :func:`allreduce`."""
    yield from reduce_scatter_steps(transport, x, add_into)
    yield from all_gather_steps(transport, x)
