"""Ranks as threads of one process: the transport where there is no MPI, and the one that most tests use.

A message is handed over without a second buffer: whichever side comes last copies from the sender's array into the
receiver's. A rank that fails (:meth:`LocalTransport.abort`) wakes every other rank with PeerLost.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hpcps.comm.memory import Memory, ThreadMemory
from hpcps.comm.transport import STOPPED_S, TIMEOUT_S, Array, Patience, Ticket, Transport, timeout_message
from hpcps.errors import CommError, CommTimeout, HpcpsError, PeerLost

Key = tuple[Any, int, int]  # context, source, tag


class LocalTicket(Ticket):
    """A message that is done once its flag is set (by whichever side made the copy)."""

    __slots__ = ("buffer", "error", "finished", "owner")

    def __init__(self, buffer: Array, owner: int, peer: int, what: str) -> None:
        super().__init__(peer, what)
        self.buffer = buffer
        self.owner = owner
        self.finished = False
        self.error: CommError | None = None

    def done(self) -> bool:
        return self.finished


class _Mailbox:
    """What has been sent to one rank, or is awaited by it, and not yet matched."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.sends: dict[Key, deque[LocalTicket]] = {}
        self.receives: dict[Key, deque[LocalTicket]] = {}


class LocalWorld:
    """``size`` ranks of this process. ``world.transports()[r]`` belongs to the thread that is rank r.

    ``nodes``: the name of each rank's node, for ranks that are to behave as if they were on several.
    """

    def __init__(self, size: int, timeout_s: float = TIMEOUT_S, nodes: Sequence[str] = ()) -> None:
        self.size = size
        self.timeout_s = timeout_s
        self.nodes = list(nodes) or [os.uname().nodename] * size
        self.boxes = [_Mailbox() for _ in range(size)]
        self.failure: tuple[int, BaseException] | None = None
        self.lost: list[int] = []
        """Ranks that have failed, and were spared"""
        self.spared: set[int] = set()
        self.shared: dict[int, Array] = {}
        """See :class:`hpcps.comm.memory.ThreadMemory`"""
        self._failing = threading.Lock()

    def transports(self) -> list[LocalTransport]:
        """One transport a rank."""
        return [LocalTransport(self, list(range(self.size)), rank, "world") for rank in range(self.size)]

    def fail(self, rank: int, error: BaseException) -> None:
        """Note the first failure, or that a rank is lost which the others can spare, and wake every rank."""
        with self._failing:
            is_alone = not (isinstance(error, HpcpsError) and error.known_to_all)
            if rank in self.spared and is_alone and not self.lost and self.failure is None:
                self.lost.append(rank)
            else:
                self.failure = self.failure or (rank, error)
        for box in self.boxes:
            with box.changed:
                box.changed.notify_all()


class LocalTransport(Transport):
    """Rank ``rank`` of a :class:`LocalWorld`, or of a group of its ranks (``members``: world ranks)."""

    def __init__(self, world: LocalWorld, members: list[int], rank: int, context: Any) -> None:
        self.world = world
        self.members = members
        self.rank = rank
        self.size = len(members)
        self.timeout_s = world.timeout_s
        self._context = context
        self._groups: Counter[tuple[int, ...]] = Counter()
        self._box = world.boxes[members[rank]]

    def isend(self, buffer: Array, to: int, tag: int) -> Ticket:
        ticket = LocalTicket(_bytes(buffer), self.members[self.rank], to, "send to")
        box = self.world.boxes[self.members[to]]
        receive = _match(box, box.receives, box.sends, (self._context, self.rank, tag), ticket)
        if receive is not None:
            self._hand_over(ticket, receive)
        return ticket

    def irecv(self, buffer: Array, source: int, tag: int) -> Ticket:
        ticket = LocalTicket(_bytes(buffer), self.members[self.rank], source, "receive from")
        send = _match(self._box, self._box.sends, self._box.receives, (self._context, source, tag), ticket)
        if send is not None:
            self._hand_over(send, ticket)
        return ticket

    def wait(self, *tickets: Ticket) -> None:
        for ticket in tickets:
            if not ticket.done():
                self._wait_until(ticket.done, [ticket])
            _raise_error(ticket)

    def wait_any(self, tickets: Sequence[Ticket]) -> int:
        def first() -> int | None:
            return next((i for i, ticket in enumerate(tickets) if ticket.done()), None)

        self._wait_until(lambda: first() is not None, tickets)
        position = first()
        assert position is not None
        _raise_error(tickets[position])
        return position

    def group(self, ranks: Sequence[int]) -> Transport:
        members = [self.members[rank] for rank in ranks]
        self._groups[tuple(members)] += 1  # others may have been in other groups
        context = (self._context, self._groups[tuple(members)], tuple(members))
        group = LocalTransport(self.world, members, list(ranks).index(self.rank), context)
        group.in_flight = self.in_flight
        return group

    def crowded(self, is_crowded: bool) -> None:
        """Nothing changes: threads always sleep while they wait."""

    def abort(self, error: BaseException) -> None:
        self.world.fail(self.members[self.rank], error)

    @property
    def description(self) -> str:
        return "one process" if self.world.size == 1 else "threads"

    @property
    def node(self) -> str:
        return self.world.nodes[self.members[self.rank]]

    def spare(self, ranks: Sequence[int]) -> bool:
        self.world.spared.update(self.members[rank] for rank in ranks)
        return True

    def lost(self) -> list[int]:
        return [self.members.index(rank) for rank in self.world.lost if rank in self.members]

    def without_lost(self) -> Transport:
        lost = self.lost()
        return self.group([rank for rank in range(self.size) if rank not in lost])

    def check(self) -> None:
        if self.world.failure is not None:
            rank, error = self.world.failure
            raise PeerLost(f"rank {rank} failed: {error}")

    def make_memory(self) -> Memory:
        return ThreadMemory(self, self.world.shared)

    def _hand_over(self, send: LocalTicket, receive: LocalTicket) -> None:
        """Copy, then tell both sides."""
        count = send.buffer.nbytes
        if count > receive.buffer.nbytes:
            message = f"a message of {count} bytes came for a buffer of {receive.buffer.nbytes} bytes"
            send.error = receive.error = CommError(message)
        else:
            receive.buffer[:count] = send.buffer
        for ticket in (send, receive):
            box = self.world.boxes[ticket.owner]
            with box.changed:
                ticket.finished = True
                box.changed.notify_all()

    def _check_lost(self, tickets: Sequence[Ticket]) -> None:
        """Raise PeerLost if one of the tickets is for a rank that is lost."""
        for rank in self.lost():
            if any(ticket.peer == rank and not ticket.done() for ticket in tickets):
                raise PeerLost(f"rank {rank} has failed")

    def _wait_until(self, reached: Callable[[], bool], tickets: Sequence[Ticket]) -> None:
        patience = Patience()
        with self._box.changed:
            while not reached():
                self.check()
                self._check_lost(tickets)
                left_s = self.timeout_s - patience.waited_s()
                if left_s <= 0:
                    raise CommTimeout(timeout_message(self.rank, tickets, self.timeout_s, self.members))
                self._box.changed.wait(min(left_s, STOPPED_S / 2))


def _bytes(buffer: Array) -> Array:
    if not buffer.flags.c_contiguous:
        raise ValueError("a message buffer must be C-contiguous")
    return buffer.reshape(-1).view(np.uint8)


def _match(
    box: _Mailbox,
    there: dict[Key, deque[LocalTicket]],
    here: dict[Key, deque[LocalTicket]],
    key: Key,
    ticket: LocalTicket,
) -> LocalTicket | None:
    """Take the oldest counterpart of ``ticket`` from ``there``, or leave the ticket in ``here``."""
    with box.changed:
        waiting = there.get(key)
        if waiting:
            return waiting.popleft()
        here.setdefault(key, deque()).append(ticket)
        return None


def _raise_error(ticket: Ticket) -> None:
    assert isinstance(ticket, LocalTicket)
    if ticket.error is not None:
        raise ticket.error
