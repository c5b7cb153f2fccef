"""How letters travel between a worker and a shard: both ends of one way, over the messages of a transport."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hpcps import aligned
from hpcps.comm.transport import Array, Ticket, Transport
from hpcps.errors import CommError
from hpcps.server.messages import (
    FRONT_BYTES,
    HEADER_BYTES,
    Header,
    more_bytes,
    pack,
    padded,
    read,
    write,
)

_NOTHING = np.empty(0, np.uint8)


class Letter:
    """A letter that has come. ``dense`` (count,) and ``more`` (uint8: keys and rows) stay as they are until the letter
    is given back to its :class:`Inbox`."""

    __slots__ = ("dense", "header", "more", "room")

    def __init__(self, header: Header, dense: Array, more: Array, room: _Room) -> None:
        self.header = header
        self.dense = dense
        self.more = more
        self.room = room


class _Room:
    """Memory for one letter at a time; sections that are longer than a front get memory that grows with them."""

    __slots__ = ("dense", "front", "more")

    def __init__(self) -> None:
        self.front = aligned.empty(FRONT_BYTES, np.uint8)
        self.dense = _NOTHING
        self.more = _NOTHING

    def of_dense(self, size_bytes: int) -> Array:
        if len(self.dense) < size_bytes:
            self.dense = aligned.empty(size_bytes, np.uint8)
        return self.dense[:size_bytes]

    def of_more(self, size_bytes: int) -> Array:
        if len(self.more) < size_bytes:
            self.more = aligned.empty(size_bytes + size_bytes // 4, np.uint8)
        return self.more[:size_bytes]


class Inbox:
    """Letters from ``peer``, one after the other. :attr:`ticket` is what is waited for next.

    Dense sections of ``dtype`` with up to ``most`` elements are accepted; they are written to ``target``, (most,),
    where that is given and the letter is long.
    """

    def __init__(
        self, transport: Transport, peer: int, tag: int, dtype: np.dtype[Any], most: int, target: Array | None = None
    ) -> None:
        self._transport = transport
        self._peer = peer
        self._tag = tag
        self._dtype = dtype
        self._most = most
        self._target = target
        self._rooms: list[_Room] = []
        self._header: Header | None = None
        self._parts: list[Array] = []
        self.received_bytes = 0
        self.listen()

    def listen(self) -> None:
        """Be ready for the next letter."""
        self._room = self._rooms.pop() if self._rooms else _Room()
        self.ticket: Ticket = self._transport.irecv(self._room.front, self._peer, self._tag)

    def take(self) -> Letter | None:
        """When :attr:`ticket` is done: the letter, or None where more of it is to come. Raises CommError."""
        if self._header is None:
            header = self._read(self._room.front)
            if header.is_one_message:
                more = HEADER_BYTES + padded(header.dense_bytes)
                dense = self._room.front[HEADER_BYTES : HEADER_BYTES + header.dense_bytes].view(header.dtype)
                return self._whole(header, dense, self._room.front[more : more + header.more])
            self._header = header
            self._parts = [part for part in (self._long_dense(header), self._room.of_more(header.more)) if part.size]
            self._awaited = 0
        else:
            self._awaited += 1
        if self._awaited < len(self._parts):
            self.ticket = self._transport.irecv(self._parts[self._awaited], self._peer, self._tag)
            return None
        header, self._header = self._header, None
        return self._whole(header, self._long_dense(header), self._room.of_more(header.more))

    def give_back(self, letter: Letter) -> None:
        """The letter is not needed any more."""
        self._rooms.append(letter.room)

    def _whole(self, header: Header, dense: Array, more: Array) -> Letter:
        self.received_bytes += HEADER_BYTES + header.dense_bytes + header.more
        return Letter(header, dense, more, self._room)

    def _long_dense(self, header: Header) -> Array:
        if self._target is not None and header.count:
            return self._target[: header.count]
        return self._room.of_dense(header.dense_bytes).view(header.dtype)

    def _read(self, front: Array) -> Header:
        header = read(front)
        if header.count > self._most or (header.count and header.dtype != self._dtype):
            raise CommError(f"{header.count} {header.dtype} numbers came for {self._most} {self._dtype}")
        return header


class Outbox:
    """Letters to ``peer``. Sections may not be changed before :meth:`flush`, or the next letter, has been called."""

    def __init__(self, transport: Transport, peer: int, tag: int) -> None:
        self._transport = transport
        self._peer = peer
        self._tag = tag
        self._front = aligned.empty(FRONT_BYTES, np.uint8)
        self._more = _NOTHING
        self._tickets: list[Ticket] = []
        self._kept: list[Array] = []
        self.sent_bytes = 0
        self.letters = 0

    def send(self, header: Header, dense: Array = _NOTHING, follow: Sequence[Array] = ()) -> None:
        """Start to send a letter: the ``dense`` section and those that ``follow``; sets their sizes in the header."""
        if self._tickets:
            self.flush()
        header.count, header.more = dense.size, more_bytes(follow) if follow else 0
        front = self._front
        write(front, header)
        size_bytes = header.dense_bytes
        isend, peer, tag = self._transport.isend, self._peer, self._tag
        self.letters += 1
        self.sent_bytes += HEADER_BYTES + size_bytes + header.more
        if header.is_one_message:
            end = HEADER_BYTES + size_bytes
            if size_bytes:
                front[HEADER_BYTES:end].view(dense.dtype)[:] = dense.reshape(-1)
            if header.more:
                start = HEADER_BYTES + padded(size_bytes)
                end = start + header.more
                pack(front[start:end], follow)
            self._tickets = [isend(front[:end], peer, tag)]
            return
        self._tickets = [isend(front[:HEADER_BYTES], peer, tag)]
        if size_bytes:
            self._kept = [np.ascontiguousarray(dense)]
            self._tickets.append(isend(self._kept[0], peer, tag))
        if header.more:
            if len(self._more) < header.more:
                self._more = aligned.empty(header.more + header.more // 4, np.uint8)
            pack(self._more, follow)
            self._tickets.append(isend(self._more[: header.more], peer, tag))

    def flush(self) -> None:
        """Block until all that was sent has left its memory."""
        tickets, self._tickets = self._tickets, []
        self._transport.wait(*tickets)
        self._kept = []
