"""What every way of moving buffers between ranks offers.

An algorithm names no network and a transport names no algorithm. A transport is an argument, never a global.
All waits end: with the buffer moved, with :class:`~hpcps.errors.CommTimeout` after ``timeout_s`` seconds, or with
:class:`~hpcps.errors.PeerLost` when another rank is known to have failed.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

if TYPE_CHECKING:
    from hpcps.comm.memory import Memory

Array = np.ndarray[Any, Any]

TIMEOUT_S = 300.0
STOPPED_S = 1.0
"""A gap in a wait's looks from which on the process has not run: suspended with its job, or stopped."""
BARRIER_TAG = 1
COLLECTIVE_TAGS = range(1024, 32768)
"""Taken in turn by collectives. MPI promises tags up to 32767 and no more."""


class Ticket(ABC):
    """One message on its way. The buffer may not be touched until the ticket is done."""

    __slots__ = ("peer", "what")

    def __init__(self, peer: int, what: str) -> None:
        self.peer = peer
        self.what = what

    @abstractmethod
    def done(self) -> bool:
        """Whether the message has moved. Never blocks."""


StartAgain = Callable[[], Ticket]


class Transport(ABC):
    """Ranks ``0 .. size - 1`` and the messages between them.

    Buffers are C-contiguous NumPy arrays of any dtype. Messages from one rank to another with one tag arrive in the
    order in which they were sent. A receive buffer may be longer than the message, never shorter. A transport belongs
    to one thread.
    """

    rank: int
    size: int
    timeout_s: float
    _collectives = 0
    _memory: Memory | None = None

    @abstractmethod
    def isend(self, buffer: Array, to: int, tag: int) -> Ticket:
        """Start sending ``buffer`` to rank ``to``. Does not block."""

    @abstractmethod
    def irecv(self, buffer: Array, source: int, tag: int) -> Ticket:
        """Start receiving into ``buffer`` from rank ``source``. Does not block."""

    def repeated_send(self, buffer: Array, to: int, tag: int) -> StartAgain:
        """What starts sending ``buffer``, as it is then, each time it is called: for messages of which there are many.
        It is called again when the ticket that it gave is done."""
        return partial(self.isend, buffer, to, tag)

    def repeated_receive(self, buffer: Array, source: int, tag: int) -> StartAgain:
        """What starts receiving into ``buffer`` each time it is called; as :meth:`repeated_send`."""
        return partial(self.irecv, buffer, source, tag)

    @abstractmethod
    def wait(self, *tickets: Ticket) -> None:
        """Block until all tickets are done. Raises CommTimeout naming the peer, or PeerLost."""

    @abstractmethod
    def wait_any(self, tickets: Sequence[Ticket]) -> int:
        """Block until one of the tickets is done and return its position. Raises as :meth:`wait` does."""

    @abstractmethod
    def group(self, ranks: Sequence[int]) -> Transport:
        """A transport over some of the ranks, renumbered in the given order; called by those ranks alone."""

    @abstractmethod
    def abort(self, error: BaseException) -> None:
        """End the whole job because of ``error`` on this rank. Under MPI this does not return."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What carries the messages, for people: "MPI (Open MPI v5.0.8)", "threads"."""

    @property
    @abstractmethod
    def node(self) -> str:
        """The name of the node on which this rank runs."""

    @abstractmethod
    def crowded(self, is_crowded: bool) -> None:
        """Told whether the node has more ranks than cores: then a wait gives its core away at once."""

    has_native_allreduce = False
    """Whether :meth:`native_allreduce` can be used."""

    takes_device_memory = False
    """Whether :meth:`native_allreduce` takes arrays in a GPU's memory."""

    engine: Any = None
    """Of :mod:`hpcps.collectives`, which sets it up at the first collective on this transport"""

    def native_allreduce(self, x: Array) -> Ticket:
        """Start a sum of ``x`` (one-dimensional; float32, float64 or int64) in place by the library below."""
        raise NotImplementedError(f"{self.description} has no all-reduce of its own")

    def check(self) -> None:  # noqa: B027  (a transport that learns of it in no other way than by messages)
        """Raise PeerLost if another rank is known to have failed: for waits that are not for messages."""

    def has_lost(self) -> bool:
        """Whether a rank is known to have died that was not spared, and the others can go on without it: see
        :meth:`survivors`."""
        return False

    def survivors(self) -> Transport:
        """The ranks that are left, in their order, as a transport of their own; this one and all its groups are of no
        more use. Of all ranks' transport alone, after :meth:`has_lost`. Blocks until all of them have come here."""
        raise NotImplementedError(f"{self.description} does not go on without ranks that it has lost")

    def spare(self, ranks: Sequence[int]) -> bool:
        """Go on as before where one of ``ranks`` dies: nothing is raised then but by a wait for, or a message to, that
        rank, and :meth:`lost` tells. One alone is spared; whoever dies after it ends all waits, as ever. Each rank says
        so for itself, of all ranks' transport. Returns False where this cannot."""
        return False

    def lost(self) -> list[int]:
        """The rank that has died, was spared, and has been heard of; none where others have died, too."""
        return []

    def without_lost(self) -> Transport:
        """The ranks that are left when some have been spared. A collective of those; groups stay."""
        raise NotImplementedError(f"{self.description} does not spare ranks")

    def joined_by(self, nodes: Sequence[str], words: Sequence[str] = ()) -> Transport:
        """These ranks, in their order, and behind them a fresh process on each of ``nodes``, which runs ``hpcps join``
        and ``words``. A collective; blocks until all are there. Raises CommError on all ranks where none can be
        started; a rank that waits in vain ends itself."""
        raise NotImplementedError(f"{self.description} starts no ranks")

    @property
    def numbers(self) -> list[int]:
        """The numbers that these ranks had when the job began, or when others last joined them."""
        return list(range(self.size))

    @abstractmethod
    def make_memory(self) -> Memory:
        """The memory that these ranks share on their nodes. A collective."""

    @property
    def memory(self) -> Memory:
        """The memory that these ranks share on their nodes. The first use is a collective."""
        if self._memory is None:  # no cached_property: that of Python 3.11 holds a lock which all ranks' threads share
            self._memory = self.make_memory()
        return self._memory

    def empty(self, count: int, dtype: DTypeLike) -> Array:
        """An array of ``count`` elements, zero at first, that the other ranks of the node see: what collectives are
        fastest with. A collective: all ranks give the same count and dtype. It stays for as long as the transport."""
        return self.memory.empty(count, dtype)

    @cached_property
    def in_flight(self) -> list[Any]:
        """The collectives that this rank has started and not finished: :class:`~hpcps.comm.pending.Pending`. A group
        shares the list of the transport that it was made of."""
        return []

    def collective_tag(self) -> int:
        """A tag for the messages of one collective, so that several on their way do not mix. All ranks start their
        collectives in one order, and so get the same tags; to be called when a collective is started, not later."""
        tag = COLLECTIVE_TAGS[self._collectives % len(COLLECTIVE_TAGS)]
        self._collectives += 1
        return tag

    def barrier(self) -> None:
        """Block until every rank has come. Cost: ceil(log2 P) empty messages a rank (dissemination barrier,
        Hensgen, Finkel and Manber 1988)."""
        nothing = np.empty(0, np.uint8)
        distance = 1
        while distance < self.size:
            arrived = self.irecv(nothing, (self.rank - distance) % self.size, BARRIER_TAG)
            sent = self.isend(nothing, (self.rank + distance) % self.size, BARRIER_TAG)
            self.wait(arrived, sent)
            distance *= 2


class Patience:
    """The time that a wait has lasted, asked for again and again. Time in which this process itself was stopped, with
    its whole job as by ``scontrol suspend``, does not count: nobody could have sent anything."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()

    def waited_s(self) -> float:
        now = time.monotonic()
        if now - self._last > STOPPED_S:
            self._started += now - self._last
        self._last = now
        return now - self._started


def timeout_message(rank: int, tickets: Sequence[Ticket], timeout_s: float, members: Sequence[int]) -> str:
    """One line that names who waited, for what and for whom; ``members``: the numbers of the ranks among all."""
    what = tickets[0].what
    peers = sorted({members[ticket.peer] for ticket in tickets if not ticket.done()})
    names = ("rank " if len(peers) == 1 else "ranks ") + ", ".join(map(str, peers))
    return f"rank {members[rank]} waited {timeout_s:g} s to {what} {names}; a longer wait is run.timeout_s"
