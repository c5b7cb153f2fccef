"""The worker's side of the parameter server: push a gradient, pull parameters."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from hpcps.comm.memory import Memory
from hpcps.comm.transport import Array, Transport
from hpcps.errors import CommError
from hpcps.params import Params
from hpcps.rows import Rows
from hpcps.server import messages
from hpcps.server.messages import ALL_ROWS, ANSWER_TAG, REQUEST_TAG, Counts, Header, Kind
from hpcps.server.nearby import nearby
from hpcps.server.post import Form, Inbox, Letter, Outbox
from hpcps.server.serve import Server
from hpcps.server.sharding import keys_of_shard
from hpcps.server.store import Shard
from hpcps.sums import Decoder, Summed

Take = Callable[[int, Letter], None]
_KEYS_DTYPE = np.dtype(np.int64)


class Traffic(NamedTuple):
    """What a worker has had to do with shards so far."""

    waited_s: float
    sent_bytes: int
    received_bytes: int
    requests: int


class Client(Protocol):
    """A worker's connection to all shards. Not thread-safe; a push, then a pull, then the next push.

    ``slack``: how many steps of any other worker the parameters may miss; -1: any number. With ``slack`` 0 a gradient
    is added to the other workers' of its step, else it is applied at once; it may be another in each step, but is one
    for a push and its pull.
    """

    def push(self, step: int, gradient: Summed, slack: int = 0) -> None:
        """Start to push the gradient of ``step`` (from 1). Does not block. It may not be changed before the pull; then
        it may hold anything."""

    def pull(self, step: int, keys: Mapping[str, Array] | None, slack: int = 0) -> None:
        """Make this worker's parameters contain ``step``: dense ones, and of each table the rows ``keys`` (distinct);
        if None all rows, and all workers' steps up to this one, whatever the slack. Blocks. Raises CommTimeout,
        PeerLost, CommError."""

    def finish(self) -> list[Counts]:
        """Tell all shards that this worker has no more to push; returns what each of them has done. Blocks until all
        workers have finished."""

    def traffic(self) -> Traffic:
        """So far. Waiting is what a pull lasts."""


class RemoteClient:
    """Shards on other ranks, or, where ``server`` is given, one of them on this rank too: it is served while this
    worker waits.

    ``params``: the worker's copy, written when an answer arrives. ``pieces``: of how many arrays this worker's gradient
    is. ``memory``: what the ranks of the node share, if arrays are to be named that lie there; the shards have it too.
    """

    def __init__(
        self,
        transport: Transport,
        params: Params,
        shards: list[slice],
        servers: list[int],
        worker: int,
        decoder: Decoder,
        server: Server | None = None,
        memory: Memory | None = None,
    ) -> None:
        self._transport = transport
        self._dense = params.dense.flat
        self._tables = {name: params.table(name) for name in params.tables}
        self._shards = shards
        self._servers = servers
        self._worker = worker
        self._server = server
        self._decoder = decoder
        self._nearby = [nearby(memory, rank) for rank in servers]
        self._outboxes = [
            Outbox(transport, rank, REQUEST_TAG, near) for rank, near in zip(servers, self._nearby, strict=True)
        ]
        self._targets = [self._dense[shard] for shard in shards]
        self._inboxes = [
            Inbox(transport, rank, ANSWER_TAG, self._dense.dtype, len(target), target, near)
            for rank, target, near in zip(servers, self._targets, self._nearby, strict=True)
        ]
        self._fresh: list[Letter | None] = [None] * len(servers)
        self._pushed: Summed | None = None
        self._slack = 0
        self._forms: list[Form] = []
        self._no_rows: list[list[Array]] = [[] for _ in servers]
        self._is_listening = True
        self._waited_s = 0.0

    def push(self, step: int, gradient: Summed, slack: int = 0) -> None:
        if self._tables:
            for number, outbox in enumerate(self._outboxes):
                header = self._push_header(Kind.PUSH, number, gradient, slack)
                header.step = step
                follow = self._follow(header, gradient, number)
                outbox.send(header, gradient.dense[..., self._shards[number]], follow)
            return
        if not self._is_prepared(gradient, slack):
            self._prepare(gradient, slack)
        for form in self._forms:
            form.send(step)

    def pull(self, step: int, keys: Mapping[str, Array] | None, slack: int = 0) -> None:
        started = time.perf_counter()
        is_asked = not self._tables
        if is_asked and keys is None and slack != 0:
            self._take_up(step, self._no_rows)  # what the push has asked for; now all workers' steps
            is_asked = False
        wanted = [self._wanted(keys, number) for number in range(len(self._servers))] if self._tables else self._no_rows
        if not is_asked:
            for number, rows in enumerate(wanted):
                self._ask(number, step, None if keys is None else rows, 0 if keys is None else slack)
        self._take_up(step, wanted)
        if self._server is not None and (slack == 0 or keys is None):
            self._serve_all(self._server, step)
        self._waited_s += time.perf_counter() - started

    def finish(self) -> list[Counts]:
        for number, outbox in enumerate(self._outboxes):
            outbox.send(Header(Kind.FINISH, self._worker, number))
        found: dict[int, Counts] = {}

        def take(number: int, letter: Letter) -> None:
            self._expect(letter, Kind.COUNTS, 0, number)
            found[number] = Counts.unpacked(letter.more[: 8 * letter.header.keys].view(np.int64))

        self._receive(take)
        for outbox in self._outboxes:
            outbox.flush()
        if self._server is not None:
            self._server.flush()
        return [found[number] for number in range(len(self._servers))]

    def traffic(self) -> Traffic:
        received_bytes = sum(box.received_bytes for box in self._inboxes)
        sent_bytes, requests = sum(box.sent_bytes for box in self._outboxes), sum(box.letters for box in self._outboxes)
        return Traffic(self._waited_s, sent_bytes, received_bytes, requests)

    def _is_prepared(self, gradient: Summed, slack: int) -> bool:
        """Whether the last gradient lay in the same array, and was pushed in the same way."""
        last = self._pushed
        is_same = last is not None and gradient.dense is last.dense and gradient.scale == last.scale
        return is_same and slack == self._slack

    def _prepare(self, gradient: Summed, slack: int) -> None:
        """Make the letters of a gradient that is pushed from this array again and again."""
        self._pushed, self._slack = gradient, slack
        self._forms = [
            outbox.form(self._push_header(Kind.PUSH_PULL, number, gradient, slack), gradient.dense[..., shard])
            for number, (outbox, shard) in enumerate(zip(self._outboxes, self._shards, strict=True))
        ]

    def _push_header(self, kind: Kind, number: int, gradient: Summed, slack: int) -> Header:
        pieces = 1 if gradient.dense.ndim == 1 else len(gradient.dense)
        encodings = self._decoder.dtype, self._decoder.rows_dtype
        header = Header(kind, self._worker, number, 0, 0, *encodings, pieces, gradient.scale, slack=slack)
        header.at_once = slack != 0
        return header

    def _follow(self, header: Header, gradient: Summed, number: int) -> list[Array]:
        """The keys and rows for one shard."""
        rows = self._split(gradient.rows, number)
        if not rows:
            return []
        keys = messages.pack_keys([own.keys for own in rows])
        header.keys = len(keys)
        return messages.sections(keys, [own.values for own in rows])

    def _ask(self, number: int, step: int, rows: list[Array] | None, slack: int) -> None:
        outbox, shards = self._outboxes[number], len(self._servers)
        header = Header(Kind.PULL, self._worker, number, step, keys=ALL_ROWS, slack=slack)
        section: list[Array] = []
        if rows is not None and self._tables:
            header.keys = len(rows) + sum(map(len, rows))
            section = outbox.lend([(header.keys, 1)], _KEYS_DTYPE)
            messages.pack_keys(rows if shards == 1 else [own // shards for own in rows], section[0].reshape(-1))
        outbox.send(header, follow=section)

    def _split(self, rows: Mapping[str, Rows], number: int) -> list[Rows]:
        """The rows of each table that a shard has, by their numbers there."""
        shards = len(self._servers)
        found = []
        for keys, values in rows.values():
            own = keys_of_shard(keys, number, shards)
            numbers = keys[own] if shards == 1 else keys[own] // shards
            found.append(Rows(numbers, np.ascontiguousarray(values[own])))
        return found

    def _wanted(self, keys: Mapping[str, Array] | None, number: int) -> list[Array]:
        """The rows of each table that are to come from a shard."""
        shards = len(self._servers)
        if keys is None:
            return [np.arange(number, len(table), shards) for table in self._tables.values()]
        return [keys[name][keys_of_shard(keys[name], number, shards)] for name in self._tables]

    def _take_up(self, step: int, wanted: list[list[Array]]) -> None:
        """Copy each shard's answer into the parameters as it comes."""

        def take(number: int, letter: Letter) -> None:
            self._expect(letter, Kind.PARAMETERS, step, number)
            self._refresh(number, letter)
            tables, keys = self._tables.values(), wanted[number]
            if keys:
                widths = [table.shape[1] for table in tables]
                rows = messages.take_rows(letter.more, [len(own) for own in keys], widths, self._dense.dtype)
                for table, own, values in zip(tables, keys, rows, strict=True):
                    self._decoder.scatter_rows(table, values, own)

        self._receive(take)

    def _refresh(self, number: int, letter: Letter) -> None:
        """Copy a shard's dense parameters, unless they have come to where they are to be: as a long letter's do, and
        those that both ranks share."""
        if letter is self._fresh[number]:
            return
        target = self._targets[number]
        if letter.dense.ctypes.data != target.ctypes.data:
            target[:] = letter.dense
        elif letter.header.region:
            self._fresh[number] = letter

    def _serve_all(self, server: Server, step: int) -> None:
        """Serve this rank's shard until all workers have what they need to go on: they may go on to a collective, in
        which nobody serves."""
        while not server.has_met(step):
            server.go_on(self._transport.wait_any(server.tickets()))

    def _expect(self, letter: Letter, kind: Kind, step: int, number: int) -> None:
        header = letter.header
        if header.kind is not kind or header.step != step:
            raise CommError(f"shard {number} answered {header.kind.name} of step {header.step} at step {step}")

    def _receive(self, take: Take) -> None:
        """One letter of each shard, as they come; this rank's own shard is served meanwhile."""
        if not self._is_listening:  # not before there is something to wait for: the shards are at work meanwhile
            for inbox in self._inboxes:
                inbox.listen()
        self._is_listening = False
        if len(self._inboxes) == 1 and self._server is None:
            self._transport.wait(self._inboxes[0].ticket)
            while not self._taken(0, take):
                self._transport.wait(self._inboxes[0].ticket)
            return
        waiting = list(range(len(self._inboxes)))
        while waiting:
            tickets = [self._inboxes[number].ticket for number in waiting]
            own = self._server.tickets() if self._server is not None else []
            position = self._transport.wait_any(tickets + own if own else tickets)
            if position >= len(tickets):
                assert self._server is not None
                self._server.go_on(position - len(tickets))
            elif self._taken(waiting[position], take):
                del waiting[position]

    def _taken(self, number: int, take: Take) -> bool:
        """Whether the letter of a shard is whole now; then it has been taken."""
        inbox = self._inboxes[number]
        letter = inbox.take()
        if letter is None:
            return False
        take(number, letter)
        inbox.give_back(letter)
        return True


class DirectClient:
    """All shards in the worker's own process, on the worker's own parameters: one process with a server strategy.

    The first shard holds the tables whole.
    """

    def __init__(self, shards: list[Shard], slices: list[slice]) -> None:
        self._shards = shards
        self._slices = slices

    def push(self, step: int, gradient: Summed, slack: int = 0) -> None:
        for shard, part in zip(self._shards, self._slices, strict=True):
            rows = gradient.rows if shard.tables else {}
            shard.push(0, step, Summed(gradient.dense[..., part], gradient.scale, rows), slack != 0)

    def pull(self, step: int, keys: Mapping[str, Array] | None, slack: int = 0) -> None:
        """The parameters are fresh already."""

    def finish(self) -> list[Counts]:
        return [Counts(s.updates, s.duplicates, 0, 0, 0, dict(s.staleness)) for s in self._shards]

    def traffic(self) -> Traffic:
        return Traffic(0.0, 0, 0, 0)
