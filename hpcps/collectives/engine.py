"""All-reduce, reduce-scatter and all-gather among ranks wherever they run: in the memory of a node, along rings between
nodes, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from hpcps_kernels.spec import WIDE_FORMATS

from hpcps import machine
from hpcps.collectives.choice import IN_WORDS, Choice, Layout
from hpcps.collectives.node import GATHER, NO_BOUNDS, SCATTER, SUM, Channel
from hpcps.collectives.pending import Finished, Pending, Queue
from hpcps.comm import doubling, ring
from hpcps.comm.meeting import Meeting
from hpcps.comm.order import Order
from hpcps.comm.pending import Pending as Messages
from hpcps.comm.pending import Steps
from hpcps.comm.topology import chunk_bounds
from hpcps.comm.transport import Array, Transport
from hpcps.errors import CommError

Start = Callable[[], Pending]


class Engine:
    """The collectives of a transport. Making one is a collective; all ranks call its methods in the same order.

    ``kernels``: a back end of hpcps_kernels; ``choice``: which algorithm for how many bytes; ``is_crowded``: whether
    there are more ranks than cores, where the caller knows of more ranks than this transport's (None: found out).
    Arrays are one-dimensional, C-contiguous float32, float64 or int64, or uint16 with ``format`` "float16" or
    "bfloat16", which are added as float32. All ranks get the same bits. Several may be under way: those started first
    end first.

    Algorithms: *memory*: the ranks of one node add up each other's arrays where they lie, n elements read and written
    by each; fastest for arrays from ``transport.empty``, others go through scratch in segments. *ring*, *doubling*:
    messages, see ``comm/ring.py``, ``comm/doubling.py``. *hierarchical*: on each node a reduce-scatter in memory, then
    rank i of every node all-reduces its chunk along a ring with the i-th of the others, then an all-gather in memory:
    the links carry what they would carry with one rank a node. *mpi*: the MPI library's own.
    """

    def __init__(
        self, transport: Transport, kernels: Any, choice: Choice | None = None, is_crowded: bool | None = None
    ) -> None:
        self.transport = transport
        self._kernels = kernels
        self._memory = transport.memory
        meeting = Meeting(transport)
        if is_crowded is None:
            is_crowded = machine.crowded(machine.seats(meeting, transport.node), transport.rank)
        transport.crowded(is_crowded)
        self._channels = self._open_channels(meeting, is_crowded)
        nodes = self._memory.nodes
        self.layout = Layout(transport.size, len(nodes), self._channels is not None, transport.has_native_allreduce)
        self.choice = choice or Choice()
        self.choice.check(self.layout)
        self._owners = min(len(ranks) for ranks in nodes)
        me = self._memory.near.rank
        is_owner = self.layout.is_hierarchical and me < self._owners
        self._cross = transport.group([ranks[me] for ranks in nodes]) if is_owner else None
        self._queue = Queue()
        self._is_simple = self.layout.is_one_memory and self.choice.is_memory_alone
        self._sum = self._channels[0].sum if self._is_simple and self._channels is not None else None
        self.sum_plain: Callable[[Array], None] = self._sum or self.allreduce
        """:meth:`allreduce` of what is not of 16 bits, with the least to do"""
        self._direct: dict[str, Callable[[Array], Pending]] = {
            "ring": ring.RingAllreduce(transport, kernels.add_into).start,
            "doubling": doubling.DoublingAllreduce(transport, kernels.add_into).start,
            "mpi": self._native,
        }

    def name(self, size_bytes: int) -> str:
        """What an all-reduce of so many bytes is done by, for people."""
        return IN_WORDS[self.choice.pick(size_bytes, self.layout)] if self.layout.ranks > 1 else "none"

    def allreduce(self, x: Array, format: str = "own") -> None:
        """Sum ``x`` over the ranks, in place. Blocks."""
        if self._sum is not None:
            self._sum(x, WIDE_FORMATS.index(format))
        else:
            self.start(x, format).wait()

    def start(self, x: Array, format: str = "own") -> Pending:
        """Begin :meth:`allreduce`; ``x`` may not be touched before it is done."""
        if self.layout.ranks == 1:
            return Finished()
        algorithm = self.choice.pick(x.nbytes, self.layout)
        if algorithm == "memory" and self._channels is not None:
            return self._in_memory(x, len(x), SUM, format=WIDE_FORMATS.index(format))()
        if format != "own":
            return self._queue.add(self._as_float32(x, format))
        return self._queue.add(self._steps(x, algorithm))

    def prepare(self, x: Array) -> Start:
        """:meth:`start` for an array that is summed again and again: a function that does it, with less to do."""
        return self._in_memory(x, len(x), SUM) if self._is_simple else lambda: self.start(x)

    def prepare_pieces(self, x: Array, count: int, program: Array, scatters: bool = False) -> Start:
        """A function that begins a sum of pieces in a given order: ``x`` holds this rank's pieces of ``count``
        elements, one after the other, in memory from ``transport.empty``; the sum is written to the first of all
        ranks, or, if it ``scatters``, this rank's chunk of it to its own. ``program``: see kernel ``meet``. Only where
        ``layout.is_one_memory``."""
        return self._in_memory(x, count, SCATTER if scatters else SUM, program=program)

    def prepare_meeting(self, x: Array) -> Start:
        """A function that gives what waits until all ranks wait for it, so that what each had written to its ``x``
        before is there for the others. Only where ``layout.is_one_memory``."""
        return self._in_memory(x[:0], 0, SUM, is_late=True)

    def chunk(self, count: int, bounds: Sequence[int] | None = None) -> slice:
        """This rank's part of ``count`` elements."""
        cut = bounds if bounds is not None else chunk_bounds(count, self.layout.ranks)
        return slice(cut[self.transport.rank], cut[self.transport.rank + 1])

    def prepare_reduce_scatter(self, x: Array, bounds: Sequence[int] | None = None) -> Start:
        """A function that begins a reduce-scatter: of the sum this rank gets ``x[bounds[r]:bounds[r + 1]]`` (equal
        chunks if None); the rest of ``x`` is then unspecified."""
        if self.layout.ranks == 1:
            return Finished
        if self.layout.is_one_memory:
            return self._in_memory(x, len(x), SCATTER, _bounds(bounds))
        return self._by_messages(lambda: ring.reduce_scatter_steps(self.transport, x, self._kernels.add_into, bounds))

    def prepare_all_gather(self, x: Array, bounds: Sequence[int] | None = None, is_late: bool = False) -> Start:
        """A function that begins an all-gather: rank r brings ``x[bounds[r]:bounds[r + 1]]`` (equal chunks if None).
        ``is_late``: it is waited for at once, so that in memory it may begin then."""
        if self.layout.ranks == 1:
            return Finished
        if self.layout.is_one_memory:
            return self._in_memory(x, len(x), GATHER, _bounds(bounds), is_late=is_late)
        return self._by_messages(lambda: ring.all_gather_steps(self.transport, x, bounds))

    def _by_messages(self, steps: Callable[[], Steps]) -> Start:
        return lambda: self._queue.add(Messages(self.transport, steps()) for _ in range(1))

    def _in_memory(
        self, x: Array, count: int, operation: int, bounds: Array = NO_BOUNDS, is_late: bool = False, **more: Any
    ) -> Start:
        """A round of the node; in the queue unless all collectives are such rounds, which keep their order anyway."""
        assert self._channels is not None
        round = self._channels[0].prepare(x, count, operation, bounds, **more)
        if self._is_simple:
            return round.later if is_late else round.start
        return lambda: self._queue.add(round.start() for _ in range(1))

    def _native(self, x: Array) -> Pending:
        return Messages(self.transport, iter(((self.transport.native_allreduce(x),),)))

    def _steps(self, x: Array, algorithm: str) -> Iterator[Pending]:
        if algorithm != "hierarchical":
            yield self._direct[algorithm](x)
            return
        assert self._channels is not None
        bounds = np.array(self._hierarchical_bounds(len(x)))
        yield self._channels[0].prepare(x, len(x), SCATTER, bounds).start()
        if self._cross is not None:
            mine = x[bounds[self._memory.near.rank] : bounds[self._memory.near.rank + 1]]
            yield ring.RingAllreduce(self._cross, self._kernels.add_into).start(mine)
        else:
            yield Finished()
        yield self._channels[1].prepare(x, len(x), GATHER, bounds).start()

    def _hierarchical_bounds(self, count: int) -> list[int]:
        """As many chunks as the smallest node has ranks; further ranks of larger nodes get none."""
        bounds = chunk_bounds(count, self._owners)
        return bounds + [count] * (self._memory.near.size - self._owners)

    def _as_float32(self, x: Array, format: str) -> Iterator[Pending]:
        wide = np.empty(len(x), np.float32)
        getattr(self._kernels, f"from_{format}")(wide, x)
        yield from self._steps(wide, self.choice.pick(wide.nbytes, self.layout))
        getattr(self._kernels, f"to_{format}")(x, wide)

    def _open_channels(self, meeting: Meeting, is_crowded: bool) -> tuple[Channel, ...] | None:
        """For rounds inside the node: one, and one for the gathers where there are several nodes; None where the ranks
        of any node cannot share memory."""
        opened: tuple[Channel, ...] | None = None
        if any(len(ranks) > 1 for ranks in self._memory.nodes):
            count = 1 if len(self._memory.nodes) == 1 else 2
            try:
                opened = tuple(Channel(self._memory, self._kernels, is_crowded) for _ in range(count))
            except CommError as error:
                if not error.known_to_all:
                    raise
        return opened if meeting.gather(np.array([opened is not None])).all() else None


def _bounds(bounds: Sequence[int] | None) -> Array:
    return NO_BOUNDS if bounds is None else np.array(bounds, np.int64)


def pieces_program(order: Order) -> Array:
    """The kernel's program for pieces that are added in this order."""
    owners = [(rank, piece) for rank, pieces in enumerate(order.counts) for piece in range(pieces)]
    return np.array([(*owner, adds) for owner, adds in zip(owners, order.adds, strict=True)], np.int64)
