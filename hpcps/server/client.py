"""The worker's side of the parameter server: push a gradient, pull parameters."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from hpcps.comm.transport import Array, Transport
from hpcps.errors import CommError
from hpcps.rows import PulledRows, Rows
from hpcps.server import messages
from hpcps.server.messages import ANSWER_TAG, REQUEST_TAG, Counts, Header, Kind
from hpcps.server.post import Inbox, Letter, Outbox
from hpcps.server.serve import Server
from hpcps.server.sharding import keys_of_shard
from hpcps.server.store import Shard
from hpcps.sums import Decoder, Summed

Take = Callable[[int, Letter], None]


class Traffic(NamedTuple):
    """What a worker has had to do with shards so far."""

    waited_s: float
    sent_bytes: int
    received_bytes: int
    requests: int


class Client(Protocol):
    """A worker's connection to all shards. Not thread-safe; a push, then a pull, then the next push.

    ``slack``: how many steps of any other worker the parameters may miss; -1: any number. With ``slack`` 0 a gradient
    is added to the other workers' of its step, else it is applied at once; it may be another in each step.
    """

    def push(self, step: int, gradient: Summed, slack: int = 0) -> None:
        """Start to push the gradient of ``step`` (from 1). Does not block. It may not be changed before the pull."""

    def pull(self, step: int, keys: Mapping[str, Array] | None, slack: int = 0) -> None:
        """Make this worker's parameters contain ``step``: dense ones, and of each table the rows ``keys`` (distinct);
        if None no rows, but all workers' steps up to this one, whatever the slack. Blocks. Raises CommTimeout,
        PeerLost, CommError."""

    def fetch(self, keys: Mapping[str, Array]) -> None:
        """Get the rows ``keys`` as they are when all workers' steps up to this one's last are in them. Blocks."""

    def meet(self) -> None:
        """Block until all workers have come here, serving where this rank has a shard."""

    def finish(self) -> list[Counts]:
        """Tell all shards that this worker has no more to push; returns what each of them has done. Blocks until all
        workers have finished."""

    def traffic(self) -> Traffic:
        """So far. Waiting is what a pull lasts."""


class RemoteClient:
    """Shards on other ranks, or, where ``server`` is given, one of them on this rank too: it is served while this
    worker waits.

    ``dense``: the worker's copy of the dense parameters, (n,), of which shard s has ``shards[s]``; ``rows``: where
    rows go, if the model has tables. Both are written as answers arrive.
    """

    def __init__(
        self,
        transport: Transport,
        dense: Array,
        rows: PulledRows | None,
        shards: list[slice],
        servers: list[int],
        worker: int,
        decoder: Decoder,
        server: Server | None = None,
    ) -> None:
        self._transport = transport
        self._dense = dense
        self._rows = rows
        self._shards = shards
        self._servers = servers
        self._worker = worker
        self._server = server
        self._decoder = decoder
        self._outboxes = [Outbox(transport, rank, REQUEST_TAG) for rank in servers]
        self._inboxes = [
            Inbox(transport, rank, ANSWER_TAG, dense.dtype, shard.stop - shard.start, dense[shard])
            for rank, shard in zip(servers, shards, strict=True)
        ]
        self._step = 0
        self._waited_s = 0.0
        if rows is not None:
            rows.pull = self.fetch

    def push(self, step: int, gradient: Summed, slack: int = 0) -> None:
        pieces = 1 if gradient.dense.ndim == 1 else len(gradient.dense)
        kind = Kind.PUSH_PULL if self._rows is None else Kind.PUSH
        encodings = self._decoder.dtype, self._decoder.rows_dtype
        for number, outbox in enumerate(self._outboxes):
            header = Header(kind, self._worker, number, step, 0, *encodings, pieces, gradient.scale, slack=slack)
            header.at_once = slack != 0
            follow = self._follow(header, gradient, number) if self._rows is not None else ()
            outbox.send(header, gradient.dense[..., self._shards[number]], follow)

    def pull(self, step: int, keys: Mapping[str, Array] | None, slack: int = 0) -> None:
        started = time.perf_counter()
        self._step = step
        if self._rows is None:  # the push has asked
            self._take_up(step, {})
        if self._rows is not None or (keys is None and slack != 0):
            slack = 0 if keys is None else slack
            self._ask(step, keys or {}, slack)
            self._take_up(step, keys or {})
        if self._server is not None and slack == 0:
            self._serve_all(self._server, step)
        self._waited_s += time.perf_counter() - started

    def fetch(self, keys: Mapping[str, Array]) -> None:
        self._ask(self._step, keys, slack=0)
        self._take_up(self._step, keys)

    def meet(self) -> None:
        if self._server is None:
            return
        for number, outbox in enumerate(self._outboxes):
            outbox.send(Header(Kind.MEET, self._worker, number))
        self._receive(lambda number, letter: self._expect(letter, Kind.MET, 0, number))
        self._server.flush()

    def finish(self) -> list[Counts]:
        for number, outbox in enumerate(self._outboxes):
            outbox.send(Header(Kind.FINISH, self._worker, number))
        found: dict[int, Counts] = {}

        def take(number: int, letter: Letter) -> None:
            self._expect(letter, Kind.COUNTS, 0, number)
            found[number] = Counts.unpacked(letter.more[: 8 * letter.header.keys].view(np.int64))

        self._receive(take, is_last=True)
        for outbox in self._outboxes:
            outbox.flush()
        if self._server is not None:
            self._server.flush()
        return [found[number] for number in range(len(self._servers))]

    def traffic(self) -> Traffic:
        received_bytes = sum(box.received_bytes for box in self._inboxes)
        sent_bytes, requests = sum(box.sent_bytes for box in self._outboxes), sum(box.letters for box in self._outboxes)
        return Traffic(self._waited_s, sent_bytes, received_bytes, requests)

    def _follow(self, header: Header, gradient: Summed, number: int) -> list[Array]:
        """The keys and rows for one shard."""
        rows = self._split(gradient.rows, number)
        if not rows:
            return []
        keys = messages.pack_keys([own.keys for own in rows])
        header.keys = len(keys)
        return messages.sections(keys, [own.values for own in rows])

    def _ask(self, step: int, keys: Mapping[str, Array], slack: int) -> None:
        for number, outbox in enumerate(self._outboxes):
            header = Header(Kind.PULL, self._worker, number, step, slack=slack)
            packed = None
            if keys:
                packed = messages.pack_keys([own[self._of_shard(own, number)] for own in keys.values()])
                header.keys = len(packed)
            outbox.send(header, follow=messages.sections(packed, []))

    def _of_shard(self, keys: Array, number: int) -> Array | slice:
        return keys_of_shard(keys, number, len(self._servers))

    def _split(self, rows: Mapping[str, Rows], number: int) -> list[Rows]:
        """The rows of each table that a shard has."""
        found = []
        for keys, values in rows.values():
            own = self._of_shard(keys, number)
            found.append(Rows(keys[own], np.ascontiguousarray(values[own])))
        return found

    def _take_up(self, step: int, keys: Mapping[str, Array]) -> None:
        """Copy each shard's answer into the parameters, and the rows of these keys to where rows go, as it comes."""
        rooms = {}
        if self._rows is not None:
            rooms = {name: self._rows.room(name, len(own)) for name, own in keys.items()}

        def take(number: int, letter: Letter) -> None:
            self._expect(letter, Kind.PARAMETERS, step, number)
            target = self._dense[self._shards[number]]
            if letter.dense.ctypes.data != target.ctypes.data:
                target[:] = letter.dense
            if rooms:
                places = [self._of_shard(own, number) for own in keys.values()]
                counts = [len(own[place]) for own, place in zip(keys.values(), places, strict=True)]
                widths = [room.shape[1] for room in rooms.values()]
                rows = messages.take_rows(letter.more, counts, widths, target.dtype)
                for room, place, values in zip(rooms.values(), places, rows, strict=True):
                    room[place] = values

        self._receive(take)
        for name, room in rooms.items():
            assert self._rows is not None
            self._rows.put(name, keys[name], room)

    def _serve_all(self, server: Server, step: int) -> None:
        """Serve this rank's shard until all workers have what they need to go on: they may go on to a collective, in
        which nobody serves."""
        while not server.has_met(step):
            server.go_on(self._transport.wait_any(server.tickets()))

    def _expect(self, letter: Letter, kind: Kind, step: int, number: int) -> None:
        header = letter.header
        if header.kind is not kind or header.step != step:
            raise CommError(f"shard {number} answered {header.kind.name} of step {header.step} at step {step}")

    def _receive(self, take: Take, is_last: bool = False) -> None:
        """One letter of each shard, as they come; this rank's own shard is served meanwhile."""
        waiting = list(range(len(self._inboxes)))
        while waiting:
            tickets = [self._inboxes[number].ticket for number in waiting]
            own = self._server.tickets() if self._server is not None else []
            position = self._transport.wait_any(tickets + own if own else tickets)
            if position >= len(tickets):
                assert self._server is not None
                self._server.go_on(position - len(tickets))
                continue
            inbox = self._inboxes[waiting[position]]
            letter = inbox.take()
            if letter is not None:
                take(waiting[position], letter)
                inbox.give_back(letter)
                if not is_last:
                    inbox.listen()
                del waiting[position]


class DirectClient:
    """All shards in the worker's own process, on the worker's own dense parameters: one process with a server strategy.

    The first shard has the tables, of which pulled rows go to ``rows``.
    """

    def __init__(self, shards: list[Shard], slices: list[slice], rows: PulledRows | None = None) -> None:
        self._shards = shards
        self._slices = slices
        self._rows = rows
        if rows is not None:
            rows.pull = self.fetch

    def push(self, step: int, gradient: Summed, slack: int = 0) -> None:
        for shard, part in zip(self._shards, self._slices, strict=True):
            rows = gradient.rows if shard.tables else {}
            shard.push(0, step, Summed(gradient.dense[..., part], gradient.scale, rows), slack != 0)

    def pull(self, step: int, keys: Mapping[str, Array] | None, slack: int = 0) -> None:
        if keys is not None:
            self.fetch(keys)

    def fetch(self, keys: Mapping[str, Array]) -> None:
        if self._rows is not None:
            for (name, own), rows in zip(keys.items(), self._shards[0].pull(0, keys), strict=True):
                self._rows.put(name, own, rows)

    def meet(self) -> None:
        """There is one worker."""

    def finish(self) -> list[Counts]:
        return [Counts(s.updates, s.duplicates, 0, 0, 0, dict(s.staleness)) for s in self._shards]

    def traffic(self) -> Traffic:
        return Traffic(0.0, 0, 0, 0)
