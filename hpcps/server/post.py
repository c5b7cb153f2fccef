"""How letters travel between a worker and a shard: both ends of one way, over the messages of a transport.

Most letters differ from the one before in their step alone. So what a letter needs is bound once and used again: its
buffer, the transport's request, and at the receiver what its header says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hpcps import aligned
from hpcps.comm.memory import Lent, Memory
from hpcps.comm.transport import Array, StartAgain, Ticket, Transport
from hpcps.errors import CommError
from hpcps.server.messages import (
    ALIGNMENT_BYTES,
    FRONT_BYTES,
    HEADER_BYTES,
    STEP_OFFSET,
    Copy,
    Header,
    Section,
    more_bytes,
    pack,
    padded,
    read,
    write,
)
from hpcps.server.nearby import TRAVELS, Borrowed, Lending, Nearby

_NOTHING = np.empty(0, np.uint8)


class Letter:
    """A letter that has come. ``dense`` (count,) and ``more`` (uint8: keys and rows) stay as they are until the letter
    is given back to its :class:`Inbox`."""

    __slots__ = ("dense", "header", "more", "room", "size_bytes")

    def __init__(self, header: Header, dense: Array, more: Array, room: _Room) -> None:
        self.header = header
        self.dense = dense
        self.more = more
        self.room = room
        self.size_bytes = HEADER_BYTES + header.dense_bytes + header.more_bytes


class _Room:
    """Memory for one letter at a time; sections that are longer than a front get memory that grows with them."""

    __slots__ = ("_known", "_last", "_raw", "_start", "_step", "dense", "front", "listen", "more")

    def __init__(self, transport: Transport, peer: int, tag: int) -> None:
        self._raw = bytearray(FRONT_BYTES + ALIGNMENT_BYTES)
        raw = np.frombuffer(self._raw, np.uint8)
        self._start = -raw.ctypes.data % ALIGNMENT_BYTES
        self.front = raw[self._start : self._start + FRONT_BYTES]
        self._step = _step_of(self.front)
        self.listen: StartAgain = transport.repeated_receive(self.front, peer, tag)
        self.dense = _NOTHING
        self.more = _NOTHING
        self._last: Letter | None = None
        self._known = b""

    def remember(self, letter: Letter) -> Letter:
        """``letter``, which has come as one message: the next one may be like it."""
        self._last = letter
        self._known = bytes(self.front[:STEP_OFFSET])
        return letter

    def alike(self) -> Letter | None:
        """The letter that has come now, if it differs from the last one in step and content alone."""
        if self._last is None or not self._raw.startswith(self._known, self._start):
            return None
        self._last.header.step = self._step[0]
        return self._last

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
    where that is given and the letter is long. ``nearby``: where dense sections may lie that do not travel; ``memory``:
    where keys and rows may.
    """

    def __init__(
        self,
        transport: Transport,
        peer: int,
        tag: int,
        dtype: np.dtype[Any],
        most: int,
        target: Array | None = None,
        nearby: Nearby | None = None,
        memory: Memory | None = None,
    ) -> None:
        self._borrowed = Borrowed(memory, peer)
        self._transport = transport
        self._peer = peer
        self._tag = tag
        self._dtype = dtype
        self._most = most
        self._target = target
        self._nearby = nearby
        self._rooms: list[_Room] = []
        self._header: Header | None = None
        self._parts: list[Array] = []
        self.received_bytes = 0
        self.listen()

    def listen(self) -> None:
        """Be ready for the next letter."""
        self._room = self._rooms.pop() if self._rooms else _Room(self._transport, self._peer, self._tag)
        self.ticket: Ticket = self._room.listen()

    def take(self) -> Letter | None:
        """When :attr:`ticket` is done: the letter, or None where more of it is to come. Raises CommError."""
        if self._header is None:
            letter = self._room.alike() or self._read()
            if letter is not None:
                self.received_bytes += letter.size_bytes
                return letter
            self._awaited = 0
        else:
            self._awaited += 1
        if self._awaited < len(self._parts):
            self.ticket = self._transport.irecv(self._parts[self._awaited], self._peer, self._tag)
            return None
        assert self._header is not None
        header, self._header = self._header, None
        more = self._more(header, self._room.of_more(header.more_bytes))
        letter = Letter(header, self._long_dense(header), more, self._room)
        self.received_bytes += letter.size_bytes
        return letter

    def give_back(self, letter: Letter) -> None:
        """The letter is not needed any more."""
        self._rooms.append(letter.room)

    def _read(self) -> Letter | None:
        """A letter that is one message; of another the parts that are to come."""
        room = self._room
        header = read(room.front)
        if header.count > self._most or (header.count and header.dtype != self._dtype):
            raise CommError(f"{header.count} {header.dtype} numbers came for {self._most} {self._dtype}")
        if header.is_one_message:
            start = HEADER_BYTES + padded(header.dense_bytes)
            dense = room.front[HEADER_BYTES : HEADER_BYTES + header.dense_bytes].view(header.dtype)
            if header.region:
                dense = self._near_dense(header)
            letter = Letter(header, dense, self._more(header, room.front[start : start + header.more_bytes]), room)
            return letter if header.is_lent else room.remember(letter)
        self._header = header
        dense = _NOTHING if header.region else self._long_dense(header)  # does not travel, whatever follows it
        self._parts = [part for part in (dense, room.of_more(header.more_bytes)) if part.size]
        return None

    def _more(self, header: Header, came: Array) -> Array:
        """Keys and rows: what came, or what it is a ticket for."""
        return self._borrowed.section(came, header.more) if header.is_lent else came

    def _long_dense(self, header: Header) -> Array:
        if header.region:
            return self._near_dense(header)
        if self._target is not None and header.count:
            return self._target[: header.count]
        return self._room.of_dense(header.dense_bytes).view(header.dtype)

    def _near_dense(self, header: Header) -> Array:
        if self._nearby is None:
            raise CommError(f"rank {self._peer} names memory of its own, which is not seen here")
        return self._nearby.array_at((header.region, header.offset), header.count, header.dtype)


class Outbox:
    """Letters to ``peer``. Sections that travel may not be changed before :meth:`flush`, or the next letter, has been
    called; dense ones that both see (``nearby``) do not travel, nor do long ones of keys and rows where the peer can
    borrow ``memory``, to which ``copy`` copies them. ``wait``: how to wait for messages, if not by the transport."""

    def __init__(
        self,
        transport: Transport,
        peer: int,
        tag: int,
        nearby: Nearby | None = None,
        wait: Callable[..., None] | None = None,
        memory: Memory | None = None,
        copy: Copy = np.copyto,
    ) -> None:
        self._lending = None if memory is None else Lending(memory)
        self._copy = copy
        self._transport = transport
        self._peer = peer
        self._tag = tag
        self._nearby = nearby
        self._wait = wait or transport.wait
        self._front = aligned.empty(FRONT_BYTES, np.uint8)
        self._more = _NOTHING
        self._lent: Sequence[Section] = ()
        self._place: Lent | None = None
        self._tickets: list[Ticket] = []
        self._kept: list[Array] = []
        self.sent_bytes = 0
        self.letters = 0

    def send(
        self, header: Header, dense: Array = _NOTHING, follow: Sequence[Section] = (), may_lend: bool = True
    ) -> None:
        """Start to send a letter: the ``dense`` section and those that ``follow``; sets their sizes in the header.
        ``may_lend``: the peer will have answered this letter before the one after the next."""
        if self._tickets:
            self.flush()
        self._describe(header, dense, follow)
        if follow is not self._lent or not follow:
            self._place = self._room_for(header.more) if may_lend else None
            if self._place is not None:
                pack(self._place.array, follow, self._copy)
        if self._place is not None:
            header.is_lent, follow = True, [self._place.ticket]
        front, size_bytes = self._front, header.dense_bytes
        write(front, header)
        isend, peer, tag = self._transport.isend, self._peer, self._tag
        self.letters += 1
        self.sent_bytes += HEADER_BYTES + size_bytes + header.more_bytes
        self._kept = [dense]
        if header.is_one_message:
            end = HEADER_BYTES + size_bytes
            if size_bytes:
                front[HEADER_BYTES:end].view(dense.dtype)[:] = dense.reshape(-1)
            if header.more:
                start = HEADER_BYTES + padded(size_bytes)
                end = start + header.more_bytes
                pack(front[start:end], follow)
            self._tickets = [isend(front[:end], peer, tag)]
            return
        self._tickets = [isend(front[:HEADER_BYTES], peer, tag)]
        if size_bytes:
            self._kept = [np.ascontiguousarray(dense)]
            self._tickets.append(isend(self._kept[0], peer, tag))
        if header.more:
            more = self._more_of(header.more_bytes)
            if follow is not self._lent:
                pack(more, follow)
            self._tickets.append(isend(more, peer, tag))

    def form(self, header: Header, dense: Array = _NOTHING) -> Form:
        """A letter to be sent again and again."""
        self._describe(header, dense, ())
        return Form(self, header, dense)

    def lend(self, shapes: Sequence[tuple[int, int]], dtype: np.dtype[Any]) -> list[Array]:
        """Memory for sections that are to ``follow`` in the next letter, where they need not be copied."""
        self.flush()
        sizes = [rows * width * dtype.itemsize for rows, width in shapes]
        total, start = sum(map(padded, sizes)), 0
        self._place = self._room_for(total)
        more = self._more_of(total) if self._place is None else self._place.array
        lent = []
        for shape, size_bytes in zip(shapes, sizes, strict=True):
            lent.append(more[start : start + size_bytes].view(dtype).reshape(shape))
            start += padded(size_bytes)
        self._lent = lent
        return lent

    def has_left(self) -> bool:
        """Whether all that was sent has left its memory. Never blocks."""
        return all(ticket.done() for ticket in self._tickets)

    def flush(self) -> None:
        """Block until all that was sent has left its memory."""
        if self._tickets:
            tickets, self._tickets = self._tickets, []
            self._wait(*tickets)

    def start_again(self, starts: Sequence[StartAgain], size_bytes: int) -> None:
        """Send the messages of a form."""
        self._tickets = [start() for start in starts]
        self.letters += 1
        self.sent_bytes += size_bytes

    def again(self, message: Array) -> StartAgain:
        """What sends ``message`` each time it is called."""
        return self._transport.repeated_send(message, self._peer, self._tag)

    def _describe(self, header: Header, dense: Array, follow: Sequence[Section]) -> None:
        """Put sizes and places of the sections into the header."""
        header.count, header.more = dense.size, more_bytes(follow) if follow else 0
        header.region, header.offset = TRAVELS if self._nearby is None else self._nearby.place_of(dense)

    def _more_of(self, size_bytes: int) -> Array:
        if len(self._more) < size_bytes:
            self._more = aligned.empty(size_bytes + size_bytes // 4, np.uint8)
        return self._more[:size_bytes]

    def _room_for(self, size_bytes: int) -> Lent | None:
        """Memory that the peer can borrow; None where sections of this size travel."""
        if self._lending is None or size_bytes <= FRONT_BYTES:
            return None
        return self._lending.room(size_bytes)


class Form:
    """A letter that is sent again and again, each time with another step and with what ``dense`` holds then."""

    __slots__ = ("_copy", "_dense", "_front", "_outbox", "_size_bytes", "_starts", "_step")

    def __init__(self, outbox: Outbox, header: Header, dense: Array) -> None:
        size_bytes = header.dense_bytes
        is_inside = size_bytes > 0 and header.is_one_message
        self._front = aligned.empty(HEADER_BYTES + size_bytes * is_inside, np.uint8)
        write(self._front, header)
        parts = [self._front]
        copy: Array | None = None
        if is_inside:
            copy = self._front[HEADER_BYTES:].view(dense.dtype).reshape(dense.shape)
        elif size_bytes:
            copy = None if dense.flags.c_contiguous else np.empty_like(dense, order="C")
            parts.append(dense if copy is None else copy)
        self._outbox = outbox
        self._dense = dense
        self._copy = copy
        self._step = _step_of(self._front)
        self._size_bytes = HEADER_BYTES + size_bytes
        self._starts = [outbox.again(part) for part in parts]

    def send(self, step: int) -> None:
        """Start to send it. ``dense`` may not be changed before the outbox has been flushed; where it does not travel,
        not before an answer says so."""
        self._outbox.flush()
        self._step[0] = step
        if self._copy is not None:
            self._copy[...] = self._dense
        self._outbox.start_again(self._starts, self._size_bytes)


def _step_of(front: Array) -> memoryview:
    """Where the step of a header stands; item 0."""
    return front[STEP_OFFSET:HEADER_BYTES].data.cast("q")
