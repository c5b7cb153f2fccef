"""Collectives along a ring of ranks: reduce-scatter, all-gather, and the all-reduce that they make together.

Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009. The chunks of a
step travel in segments, and a segment is sent on as soon as it has come and is added: sending, receiving and adding
overlap, also from one step to the next and from the reduce-scatter to the all-gather, so that the link to the right
has something to carry all the time. Each collective is written once, as a generator that starts messages and yields
the tickets to be waited for; :func:`run` waits for them, and :class:`Pending` lets the caller work between the start
and the wait. All ranks must give the same bounds and segment size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from numpy.typing import DTypeLike

from hpcps.comm.pending import Pending, Steps, run
from hpcps.comm.topology import chunk_bounds, left, right, slices
from hpcps.comm.transport import Array, Ticket, Transport

SEGMENT_BYTES = 1 << 20
AHEAD = 8
"""Receives posted ahead of the segment that is waited for, and segments of its own that a rank sends ahead."""

AddInto = Callable[[Array, Array], object]


def reduce_scatter(
    transport: Transport,
    x: Array,
    add_into: AddInto,
    bounds: Sequence[int] | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> slice:
    """Sum ``x`` (one-dimensional, the same length and dtype everywhere) over the ranks; each rank gets one chunk.

    ``bounds`` defaults to equal chunks. Cost: P - 1 steps, n (P - 1) / P elements sent by each rank. Chunk c is
    summed in ring order, beginning with rank c + 1's; its sum stands on rank c alone. Returns the slice of ``x`` that
    holds this rank's sum; the other chunks are overwritten. Blocks.
    """
    run(transport, reduce_scatter_steps(transport, x, add_into, bounds, segment_bytes))
    return slices(_bounds(transport, x, bounds))[transport.rank]


def all_gather(
    transport: Transport, x: Array, bounds: Sequence[int] | None = None, segment_bytes: int = SEGMENT_BYTES
) -> None:
    """Fill ``x`` on every rank with the chunks of all: rank r brings ``x[bounds[r]:bounds[r + 1]]``.

    ``bounds`` defaults to equal chunks. Cost: P - 1 steps, at most n elements sent by each rank. All ranks end
    with the same bits. Blocks.
    """
    run(transport, all_gather_steps(transport, x, bounds, segment_bytes))


def allreduce(transport: Transport, x: Array, add_into: AddInto, segment_bytes: int = SEGMENT_BYTES) -> None:
    """Sum ``x`` (one-dimensional, the same length and dtype everywhere) over the ranks, in place.

    Cost: 2 (P - 1) steps, 2 n (P - 1) / P elements sent by each rank. Chunk c is summed in ring order beginning with
    rank c + 1, then copied: all ranks end with the same bits, and the bits depend on the rank count unless addition
    is exact. Blocks.
    """
    run(transport, allreduce_steps(transport, x, add_into, segment_bytes))


class RingAllreduce:
    """All-reduces one after another or several at once, each in two halves: start it, work, wait for it."""

    name = "ring"

    def __init__(self, transport: Transport, add_into: AddInto, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._transport = transport
        self._add_into = add_into
        self._segment_bytes = segment_bytes

    def start(self, x: Array) -> Pending:
        """Begin :func:`allreduce` of ``x``, which may not be touched before the wait."""
        return Pending(self._transport, allreduce_steps(self._transport, x, self._add_into, self._segment_bytes))


def reduce_scatter_steps(
    transport: Transport,
    x: Array,
    add_into: AddInto,
    bounds: Sequence[int] | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> Steps:
    """The steps of :func:`reduce_scatter`. The tag of its messages is taken by this call, not by its first step."""
    chunks = _chunks_from(transport.rank - 1, x, _bounds(transport, x, bounds), segment_bytes)
    path = _Path(own=chunks[0], added=_joined(chunks[1:]), copied=[], kept=len(chunks[-1]))
    return _along(transport, path, x.dtype, add_into)


def all_gather_steps(
    transport: Transport, x: Array, bounds: Sequence[int] | None = None, segment_bytes: int = SEGMENT_BYTES
) -> Steps:
    """The steps of :func:`all_gather`. The tag of its messages is taken by this call, not by its first step."""
    chunks = _chunks_from(transport.rank, x, _bounds(transport, x, bounds), segment_bytes)
    path = _Path(own=chunks[0], added=[], copied=_joined(chunks[1:]), kept=len(chunks[-1]))
    return _along(transport, path, x.dtype, np.add)


def allreduce_steps(transport: Transport, x: Array, add_into: AddInto, segment_bytes: int = SEGMENT_BYTES) -> Steps:
    """The steps of :func:`allreduce`. The tag of its messages is taken by this call, not by its first step."""
    chunks = _chunks_from(transport.rank - 1, x, _bounds(transport, x, None), segment_bytes)
    kept = len(chunks[transport.size - 2])
    path = _Path(chunks[0], added=_joined(chunks[1:]), copied=_joined(chunks[:-1]), kept=kept, comes_back=True)
    return _along(transport, path, x.dtype, add_into)


@dataclass(frozen=True)
class _Path:
    """The segments of this rank's array that messages pass, in the order of the messages.

    ``own`` are sent first. Then come those to be added to ``added``, then those that overwrite ``copied``; all but the
    last ``kept`` of them are sent on. ``comes_back``: what overwrites ``copied[i]`` comes after the send i, which is
    of the same segment.
    """

    own: list[Array]
    added: list[Array]
    copied: list[Array]
    kept: int
    comes_back: bool = False


def _along(transport: Transport, path: _Path, dtype: DTypeLike, add_into: AddInto) -> Steps:
    tag = transport.collective_tag()
    return _steps(transport, tag, path, dtype, add_into) if transport.size > 1 else iter(())


def _steps(transport: Transport, tag: int, path: _Path, dtype: DTypeLike, add_into: AddInto) -> Steps:
    """Receive, add and send on, with up to ``ahead`` segments under way to either side.

    Nobody waits in a circle: a rank that waits for its receive j has posted its sends up to j, or up to j - 1 if it
    has no segment of its own; so its left neighbour, or the first beyond that has one, has posted send j. A segment
    that comes back is waited for to have left: by the choice of ``ahead`` that is send j - 1 or an earlier one, or
    send 0 of a rank that adds nothing.
    """
    to, source = right(transport.rank, transport.size), left(transport.rank, transport.size)
    incoming = path.added + path.copied
    outgoing = path.own + incoming[: len(incoming) - path.kept]
    ahead = min(AHEAD, max(1, len(path.added))) if path.comes_back else AHEAD
    room = np.empty((min(ahead, len(path.added)), max(map(len, path.added), default=0)), dtype)

    def place(number: int) -> Array:
        if number < len(path.added):
            return room[number % ahead, : len(path.added[number])]
        return incoming[number]

    sends: list[Ticket] = []
    receives: list[Ticket] = []
    for j, segment in enumerate(incoming):
        for number in range(len(sends), min(j + min(ahead, len(path.own)), len(outgoing))):
            sends.append(transport.isend(outgoing[number], to, tag))
        for number in range(len(receives), min(j + ahead, len(incoming))):
            if path.comes_back and number >= len(path.added):
                yield (sends[number - len(path.added)],)
            receives.append(transport.irecv(place(number), source, tag))
        yield (receives[j],)
        if j < len(path.added):
            add_into(segment, place(j))
    sends += [transport.isend(segment, to, tag) for segment in outgoing[len(sends) :]]
    for send in sends:
        yield (send,)


def _chunks_from(first: int, x: Array, bounds: list[int], segment_bytes: int) -> list[list[Array]]:
    """The chunks of ``x`` from number ``first`` on, in falling order around the ring, each cut into segments."""
    count = max(1, segment_bytes // x.itemsize)
    ranges = list(pairwise(bounds))
    turned = [ranges[(first - step) % len(ranges)] for step in range(len(ranges))]
    return [[x[start : min(start + count, high)] for start in range(low, high, count)] for low, high in turned]


def _joined(chunks: list[list[Array]]) -> list[Array]:
    return list(chain.from_iterable(chunks))


def _bounds(transport: Transport, x: Array, bounds: Sequence[int] | None) -> list[int]:
    return list(bounds) if bounds is not None else chunk_bounds(len(x), transport.size)
