"""Messages with a checksum each: what was damaged, lost or mixed up on the way is noticed where it arrives.

``HPCPS_CHECK=1`` puts it around the transport of every rank. It costs a pass over each message on both sides and a
second, small message.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from hpcps.comm import doubling
from hpcps.comm.memory import Memory
from hpcps.comm.transport import Array, Ticket, Transport
from hpcps.errors import CommError

VARIABLE = "HPCPS_CHECK"
"""Set to 1 for any rank, messages are checked on all."""


def if_asked(transport: Transport, environment: Mapping[str, str]) -> Transport:
    """``transport``, checked if ``HPCPS_CHECK=1`` is in the environment of any rank. A collective, for not every
    launcher hands the environment on to all nodes."""
    asked = np.array([int(environment.get(VARIABLE) == "1")])
    doubling.allreduce(transport, asked, _add_into)
    return CheckedTransport(transport) if asked[0] else transport


class CheckedTicket(Ticket):
    """A message and its header: its number, its bytes, their CRC-32."""

    __slots__ = ("header", "number", "parts", "received", "tag")

    def __init__(self, parts: tuple[Ticket, Ticket], header: Array, number: int, tag: int, received: Array | None):
        super().__init__(parts[0].peer, parts[0].what)
        self.parts = parts
        self.header = header
        self.number = number
        self.tag = tag
        self.received = received

    def done(self) -> bool:
        return not self.missing()

    def missing(self) -> list[Ticket]:
        """What has not moved yet."""
        return [part for part in self.parts if not part.done()]

    def verify(self, rank: int) -> None:
        """Compare what came with its header, once. Raises CommError naming what differs."""
        if self.received is None:
            return
        number, size_bytes, checksum = map(int, self.header)
        wrong = ""
        if number != self.number:
            wrong = f"its number is {number}, expected was {self.number}"
        elif not 0 <= size_bytes <= self.received.nbytes:
            wrong = f"{size_bytes} bytes were sent, the buffer has {self.received.nbytes}"
        elif (found := zlib.crc32(_bytes(self.received)[:size_bytes].data)) != checksum:
            wrong = f"the checksum of its {size_bytes} bytes is {found:08x}, at the sender it was {checksum:08x}"
        if wrong:
            raise CommError(f"rank {rank} received a wrong message from rank {self.peer}, tag {self.tag}: {wrong}")
        self.received = None


class CheckedTransport(Transport):
    """Another transport, ``inner``, with each message followed by its header; waiting for a message verifies it."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.rank = inner.rank
        self.size = inner.size
        self._sent: Counter[tuple[int, int]] = Counter()
        self._received: Counter[tuple[int, int]] = Counter()

    @property
    def timeout_s(self) -> float:
        return self.inner.timeout_s

    @timeout_s.setter
    def timeout_s(self, seconds: float) -> None:
        self.inner.timeout_s = seconds

    def isend(self, buffer: Array, to: int, tag: int) -> Ticket:
        self._sent[to, tag] += 1
        number = self._sent[to, tag]
        header = np.array([number, buffer.nbytes, zlib.crc32(_bytes(buffer).data)], np.int64)
        parts = self.inner.isend(buffer, to, tag), self.inner.isend(header, to, tag)
        return CheckedTicket(parts, header, number, tag, received=None)

    def irecv(self, buffer: Array, source: int, tag: int) -> Ticket:
        self._received[source, tag] += 1
        header = np.zeros(3, np.int64)
        parts = self.inner.irecv(buffer, source, tag), self.inner.irecv(header, source, tag)
        return CheckedTicket(parts, header, self._received[source, tag], tag, received=buffer)

    def wait(self, *tickets: Ticket) -> None:
        self.inner.wait(*(part for ticket in tickets for part in _checked(ticket).parts))
        for ticket in tickets:
            _checked(ticket).verify(self.rank)

    def wait_any(self, tickets: Sequence[Ticket]) -> int:
        while True:
            missing = [_checked(ticket).missing() for ticket in tickets]
            for position, parts in enumerate(missing):
                if not parts:
                    _checked(tickets[position]).verify(self.rank)
                    return position
            self.inner.wait_any([part for parts in missing for part in parts])

    def group(self, ranks: Sequence[int]) -> Transport:
        group = CheckedTransport(self.inner.group(ranks))
        group.in_flight = self.in_flight
        return group

    def abort(self, error: BaseException) -> None:
        self.inner.abort(error)

    @property
    def description(self) -> str:
        return f"{self.inner.description}, checked"

    @property
    def node(self) -> str:
        return self.inner.node

    def crowded(self, is_crowded: bool) -> None:
        self.inner.crowded(is_crowded)

    def check(self) -> None:
        self.inner.check()

    def has_lost(self) -> bool:
        return self.inner.has_lost()

    def survivors(self) -> Transport:
        return CheckedTransport(self.inner.survivors())

    def spare(self, ranks: Sequence[int]) -> bool:
        return self.inner.spare(ranks)

    def lost(self) -> list[int]:
        return self.inner.lost()

    def without_lost(self) -> Transport:
        return CheckedTransport(self.inner.without_lost())

    def joined_by(self, nodes: Sequence[str], words: Sequence[str] = ()) -> Transport:
        return CheckedTransport(self.inner.joined_by(nodes, [*words, "--checked"]))

    @property
    def numbers(self) -> list[int]:
        return self.inner.numbers

    def make_memory(self) -> Memory:
        return self.inner.make_memory()


def _checked(ticket: Ticket) -> CheckedTicket:
    assert isinstance(ticket, CheckedTicket)
    return ticket


def _bytes(buffer: Array) -> Array:
    return buffer.reshape(-1).view(np.uint8)


def _add_into(out: Array, x: Array) -> None:
    out += x
