"""A worker's ways to all shards and back, also where one of these is lost, and its copy served instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hpcps.comm.memory import Memory
from hpcps.comm.transport import Array, Ticket, Transport
from hpcps.errors import PeerLost
from hpcps.server.messages import ANSWER_TAG, COPY_TAGS, REQUEST_TAG, Copy
from hpcps.server.nearby import letter_memory, nearby
from hpcps.server.post import Inbox, Letter, Outbox
from hpcps.server.serve import Server

Take = Callable[[int, Letter], None]
Again = Callable[[int, PeerLost], bool]
"""Of a shard that was lost before it answered: asks its copy, and returns whether that will answer; or raises the
error"""


class Ways:
    """Letters to the shards on the ranks ``servers``, and their answers: dense sections of up to ``targets[s]`` are
    written there. ``server``: the shard on this rank, if there is one: it is served while there is something to wait
    for. ``memory``, ``letters``: as of :class:`hpcps.server.remote.RemoteClient`. ``copies``: the ranks that serve the
    shards when theirs are lost, and spared; empty: none does. ``copy``: as of :class:`hpcps.server.post.Outbox`."""

    def __init__(
        self,
        transport: Transport,
        servers: Sequence[int],
        targets: Sequence[Array],
        server: Server | None,
        memory: Memory | None,
        letters: Memory | None,
        copies: Sequence[int] = (),
        copy: Copy = np.copyto,
    ) -> None:
        self.numbers = range(len(servers))
        self.turned: set[int] = set()
        """The shards whose copies have taken over"""
        self.outboxes: list[Outbox] = []
        self._inboxes: list[Inbox] = []
        self._is_listening = [True] * len(servers)
        self._transport = transport
        self._server = server
        self._servers = list(servers)
        self._targets = targets
        self._copies, self._copy = copies, copy
        self._memory, self._letters = memory, letters
        self._all: list[tuple[Outbox, Inbox]] = []
        for number in self.numbers:
            outbox, inbox = self._connect(number, REQUEST_TAG, ANSWER_TAG)
            self.outboxes.append(outbox)
            self._inboxes.append(inbox)

    def is_lost(self, number: int) -> bool:
        """Whether the rank of a shard is lost, and there is a copy."""
        has_copy = bool(self._copies) and number not in self.turned
        return has_copy and self._servers[number] in self._transport.lost()

    def turn_to_copy(self, number: int, error: PeerLost) -> None:
        """Go on with the copy of a shard that is lost. Raises ``error`` where it is not, or there is no copy."""
        if not self.is_lost(number):
            raise error
        self.turned.add(number)
        self._servers[number] = self._copies[number]
        self.outboxes[number], self._inboxes[number] = self._connect(number, *COPY_TAGS)
        self._is_listening[number] = True

    def receive(self, take: Take, again: Again, numbers: Sequence[int] | None = None) -> None:
        """One letter of each shard, or of these ``numbers``, as they come; this rank's own shard is served
        meanwhile. ``again``: of one that is lost."""
        waiting = list(self.numbers if numbers is None else numbers)
        if waiting == [0] and self._server is None and not self._copies:
            self._receive_one(take)
            return

        def without(number: int, error: PeerLost) -> None:
            if not again(number, error):
                waiting.remove(number)
            self._is_listening[number] = False

        for number in waiting.copy():  # not before there is something to wait for: the shards are at work meanwhile
            try:
                if not self._is_listening[number]:
                    self._inboxes[number].listen()
                self._is_listening[number] = False
            except PeerLost as error:
                without(number, error)
        while waiting:
            try:
                position = self._wait_for_one([self._inboxes[number].ticket for number in waiting])
                if position is not None and self._taken(waiting[position], take):
                    del waiting[position]
            except PeerLost as error:
                lost = [number for number in waiting if self.is_lost(number)]
                if not lost:
                    raise
                for number in lost:
                    without(number, error)

    def _receive_one(self, take: Take) -> None:
        """The same of the only shard, which has no copy: short messages come and go in a few microseconds."""
        inbox = self._inboxes[0]
        if not self._is_listening[0]:
            inbox.listen()
        self._is_listening[0] = False
        self._transport.wait(inbox.ticket)
        while not self._taken(0, take):
            self._transport.wait(inbox.ticket)

    def traffic(self) -> tuple[int, int, int]:
        """Bytes that were sent and received so far, and letters that were sent."""
        sent, received = [outbox for outbox, _ in self._all], [inbox for _, inbox in self._all]
        sent_bytes, letters = sum(box.sent_bytes for box in sent), sum(box.letters for box in sent)
        return sent_bytes, sum(box.received_bytes for box in received), letters

    def _connect(self, number: int, request_tag: int, answer_tag: int) -> tuple[Outbox, Inbox]:
        """The way to a shard, and back."""
        transport, rank, target = self._transport, self._servers[number], self._targets[number]
        near, letters = nearby(self._memory, rank), letter_memory(self._letters, rank)
        wait = transport.wait if self._server is None else self._wait_serving
        outbox = Outbox(transport, rank, request_tag, near, wait, letters, self._copy)
        inbox = Inbox(transport, rank, answer_tag, target.dtype, len(target), target, near, letters)
        self._all.append((outbox, inbox))
        return outbox, inbox

    def _wait_serving(self, *tickets: Ticket) -> None:
        """Wait for messages to leave; what they wait for may be this rank's own shard."""
        waiting = list(tickets)
        while waiting:
            position = self._wait_for_one(waiting)
            if position is not None:
                del waiting[position]

    def _wait_for_one(self, tickets: list[Ticket]) -> int | None:
        """Block until one of the tickets is done; returns its position, or None where this rank's shard was served
        instead."""
        if self._server is None:
            return self._transport.wait_any(tickets)
        position = self._server.wait_any(tickets + self._server.tickets())
        if position < len(tickets):
            return position
        self._server.go_on(position - len(tickets))
        return None

    def _taken(self, number: int, take: Take) -> bool:
        """Whether the letter of a shard is whole now; then it has been taken."""
        inbox = self._inboxes[number]
        letter = inbox.take()
        if letter is None:
            return False
        take(number, letter)
        inbox.give_back(letter)
        return True
