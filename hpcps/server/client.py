"""The worker's side of the parameter server: push a gradient, pull parameters."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from hpcps.comm.codes import Code
from hpcps.comm.memory import Memory
from hpcps.comm.transport import Array, Ticket, Transport
from hpcps.errors import CommError
from hpcps.rows import Picked, PulledRows, Rows
from hpcps.server import messages
from hpcps.server.filters import Encoder
from hpcps.server.messages import ANSWER_TAG, CODES, REQUEST_TAG, SAME_KEYS, SOME_KEYS, Counts, Header, Kind
from hpcps.server.nearby import letter_memory, nearby
from hpcps.server.post import Form, Inbox, Letter, Outbox
from hpcps.server.serve import Server
from hpcps.server.sharding import keys_of_shard
from hpcps.snapshot import Flat, Pieces, Snapshot, in_memory
from hpcps.sums import Decoder, Summed

Take = Callable[[int, Letter], None]
NO_KEYS: Mapping[str, Array] = {}
_KEYS_DTYPE = np.dtype(np.int64)


class Traffic(NamedTuple):
    """What a worker has had to do with shards so far."""

    waited_s: float
    sent_bytes: int
    received_bytes: int
    requests: int
    gradient_rows: int = 0
    pushed_rows: int = 0
    """Of gradients, and of pushes; where rows are kept back"""
    dropped: int = 0
    """Pushes that came too late, over all shards"""
    skipped: int = 0
    """Steps that this worker has left out"""


class Client(Protocol):
    """A worker's connection to all shards. Not thread-safe; a push, then a pull, then the next push.

    ``slack``: how many steps of any other worker the parameters may miss; -1: any number. With ``slack`` 0 a gradient
    is added to the other workers' of its step, else it is applied at once; it may be another in each step.
    """

    def push(self, step: int, gradient: Summed, slack: int = 0) -> None:
        """Start to push the gradient of ``step`` (from 1). Does not block. It may not be changed before the pull."""

    def pull(self, step: int, keys: Mapping[str, Array] | None, slack: int = 0) -> int:
        """Make this worker's parameters contain ``step``: dense ones, and of each table the rows ``keys`` (distinct);
        if None no rows, but all workers' steps up to this one, whatever the slack. Returns the newest step that some
        shard has come to: more than ``step`` where others went on without this worker, see :meth:`go_on`. Blocks.
        Raises CommTimeout, PeerLost, CommError."""

    def go_on(self, step: int, keys: Mapping[str, Array] | None) -> None:
        """After a pull that returned ``step``, a later one than it was asked for: go on from there. The parameters of
        all shards contain it then, and of each table these rows, if given. Blocks."""

    def fetch(self, keys: Mapping[str, Array]) -> None:
        """Get the rows ``keys`` as they are when all workers' steps up to this one's last are in them. Blocks."""

    def meet(self) -> None:
        """Block until all workers have come here, serving where this rank has a shard."""

    def keep(self) -> None:
        """The same, and shards on other ranks, and this rank's, keep their state for a checkpoint meanwhile. All
        workers' steps up to their last must be in the parameters."""

    def pieces(self) -> Pieces:
        """What of a run's state this worker has, until the next push: with shards of its own process theirs, too."""

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot; shards do so themselves. Raises CheckpointError."""

    def finish(self) -> list[Counts]:
        """Tell all shards that this worker has no more to push; returns what each of them has done. Blocks until all
        workers have finished."""

    def traffic(self) -> Traffic:
        """So far. Waiting is what a pull lasts."""


class RemoteClient:
    """Shards on other ranks, or, where ``server`` is given, one of them on this rank too: it is served while this
    worker waits.

    ``dense``: the worker's copy of the dense parameters, (n,), of which shard s has ``shards[s]``; ``rows``: where
    rows go, if the model has tables. Both are written as answers arrive. ``memory``: what the ranks of the node share,
    if arrays are to be named that lie there; ``code``: what gradients are pushed as; ``letters``: memory for keys and
    rows that need not travel in the node. The shards have all three, too. ``workers``: how many there are, of which
    this is number ``worker``.
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
        memory: Memory | None = None,
        code: Code | None = None,
        letters: Memory | None = None,
        workers: int = 0,
    ) -> None:
        self._transport = transport
        self._workers = workers
        self._dense = dense
        self._rows = rows
        self._shards = shards
        self._servers = servers
        self._worker = worker
        self._server = server
        self._decoder = decoder
        self._nearby = [nearby(memory, rank) for rank in servers]
        wait = transport.wait if server is None else self._wait_serving
        self._outboxes = [
            Outbox(transport, rank, REQUEST_TAG, near, wait, letter_memory(letters, rank))
            for rank, near in zip(servers, self._nearby, strict=True)
        ]
        self._targets = [self._dense[shard] for shard in shards]
        self._inboxes = [
            Inbox(
                transport, rank, ANSWER_TAG, self._dense.dtype, len(target), target, near, letter_memory(letters, rank)
            )
            for rank, target, near in zip(servers, self._targets, self._nearby, strict=True)
        ]
        self._encoders = [Encoder(code, len(target), decoder.dtype) for target in self._targets] if code else []
        self._fresh: list[Letter | None] = [None] * len(servers)
        self._pushed: Summed | None = None
        self._slack = 0
        self._gradient: Array | None = None
        self._reached = [0] * len(servers)
        self._dropped = self._skipped = 0
        self._forms: list[Form] = []
        self._step = 0
        self._is_settled = True
        self._asked = NO_KEYS
        self._numbers = range(len(servers))
        self._is_listening = [True] * len(servers)
        self._waited_s = 0.0
        if rows is not None:
            rows.pull = self.fetch

    def push(self, step: int, gradient: Summed, slack: int = 0) -> None:
        self._gradient = gradient.dense
        if self._rows is not None:
            are_known = self._are_asked(gradient.picked or gradient.rows)
            for number, outbox in enumerate(self._outboxes):
                header = self._push_header(Kind.PUSH, number, gradient, slack)
                header.step = step
                follow = self._follow(header, gradient, number, are_known)
                outbox.send(header, self._dense_of(gradient, number), follow, may_lend=self._is_settled)
            self._is_settled = slack != 0  # such a push is applied as it comes
            return
        if not self._is_prepared(gradient, slack):
            self._prepare(gradient, slack)
        for number, form in enumerate(self._forms):
            if self._encoders:
                self._dense_of(gradient, number)
            form.send(step)

    def pull(self, step: int, keys: Mapping[str, Array] | None, slack: int = 0) -> int:
        started = time.perf_counter()
        self._step = step
        if self._rows is None:  # the push has asked
            self._take_up(step, NO_KEYS)
        if self._rows is not None or (keys is None and slack != 0):
            slack = 0 if keys is None else slack
            self._ask(step, keys or NO_KEYS, slack)
            self._take_up(step, keys or NO_KEYS)
        if self._server is not None and slack == 0:
            self._serve_all(self._server, step)
        self._waited_s += time.perf_counter() - started
        return max(self._reached)

    def go_on(self, step: int, keys: Mapping[str, Array] | None) -> None:
        started = time.perf_counter()
        self._skipped += step - self._step
        self._step = step
        behind = [number for number, reached in enumerate(self._reached) if keys or reached < step]
        self._ask(step, keys or NO_KEYS, slack=0, numbers=behind)
        self._take_up(step, keys or NO_KEYS, behind)
        self._waited_s += time.perf_counter() - started

    def fetch(self, keys: Mapping[str, Array]) -> None:
        self._ask(self._step, keys, slack=0)
        self._take_up(self._step, keys)

    def meet(self) -> None:
        if self._server is not None:
            self._meet(Kind.MEET)

    def keep(self) -> None:
        self._meet(Kind.KEEP)

    def pieces(self) -> Pieces:
        start = self._worker * len(self._dense)
        encoders = zip(self._encoders, self._shards, strict=False)
        return Pieces([Flat("residual", start + where.start, in_memory(one.residual)) for one, where in encoders])

    def restore(self, snapshot: Snapshot) -> None:
        count, workers = len(self._dense), self._workers
        for one, where in zip(self._encoders, self._shards, strict=False):
            snapshot.fill_residual(one.residual, where.start, count, self._worker, workers, has_sums=False)

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
            while not self._server.is_finished:
                self._server.go_on(self._server.wait_any(self._server.tickets()))
            self._server.flush()
        return [found[number] for number in range(len(self._servers))]

    def traffic(self) -> Traffic:
        received_bytes = sum(box.received_bytes for box in self._inboxes)
        sent_bytes, requests = sum(box.sent_bytes for box in self._outboxes), sum(box.letters for box in self._outboxes)
        late = {"dropped": self._dropped, "skipped": self._skipped}
        return Traffic(self._waited_s, sent_bytes, received_bytes, requests, **late)

    def _meet(self, kind: Kind) -> None:
        for number, outbox in enumerate(self._outboxes):
            outbox.send(Header(kind, self._worker, number))
        self._receive(lambda number, letter: self._expect(letter, Kind.MET, 0, number))
        if self._server is not None:
            self._server.flush()

    def _is_prepared(self, gradient: Summed, slack: int) -> bool:
        """Whether the last gradient lay in the same array, and was pushed in the same way."""
        last = self._pushed
        is_same = last is not None and gradient.dense is last.dense and gradient.scale == last.scale
        return is_same and slack == self._slack

    def _prepare(self, gradient: Summed, slack: int) -> None:
        """Make the letters of a gradient that is pushed from this array again and again."""
        self._pushed, self._slack = gradient, slack
        self._forms = [
            outbox.form(self._push_header(Kind.PUSH_PULL, number, gradient, slack), self._place_of(gradient, number))
            for number, outbox in enumerate(self._outboxes)
        ]

    def _place_of(self, gradient: Summed, number: int) -> Array:
        """Where what is pushed to a shard lies."""
        return self._encoders[number].message if self._encoders else gradient.dense[..., self._shards[number]]

    def _dense_of(self, gradient: Summed, number: int) -> Array:
        """What is pushed to a shard."""
        own = gradient.dense[..., self._shards[number]]
        return self._encoders[number].encode(own) if self._encoders else own

    def _push_header(self, kind: Kind, number: int, gradient: Summed, slack: int) -> Header:
        pieces = 1 if gradient.dense.ndim == 1 else len(gradient.dense)
        encodings = CODES if self._encoders else self._decoder.dtype, self._decoder.rows_dtype
        header = Header(kind, self._worker, number, 0, 0, *encodings, pieces, gradient.scale, slack=slack)
        header.at_once = slack != 0
        return header

    def _are_asked(self, rows: Mapping[str, Rows] | Mapping[str, Picked]) -> bool:
        """Whether these rows are those that were asked for last: then the shards know their keys."""
        asked = self._asked
        return (
            bool(rows)
            and rows.keys() == asked.keys()
            and all(own.keys is asked[name] or np.array_equal(own.keys, asked[name]) for name, own in rows.items())
        )

    def _follow(self, header: Header, gradient: Summed, number: int, are_known: bool) -> list[Array]:
        """The keys and rows for one shard, or the rows alone if it knows the keys."""
        rows = self._split(gradient.rows, number)
        if not rows:
            return []
        if are_known and gradient.picked:
            header.keys = SOME_KEYS
            picked = [own.are_in[self._of_shard(own.keys, number)] for own in gradient.picked.values()]
            return messages.sections(messages.pack_picked(picked), [own.values for own in rows])
        if are_known:
            header.keys = SAME_KEYS
            return messages.sections(None, [own.values for own in rows])
        keys = messages.pack_keys([own.keys for own in rows])
        header.keys = len(keys)
        return messages.sections(keys, [own.values for own in rows])

    def _ask(self, step: int, keys: Mapping[str, Array], slack: int, numbers: Sequence[int] | None = None) -> None:
        self._asked = keys or self._asked
        self._is_settled |= slack == 0
        for number in self._numbers if numbers is None else numbers:
            outbox = self._outboxes[number]
            header = Header(Kind.PULL, self._worker, number, step, slack=slack)
            section: list[Array] = []
            if keys:
                wanted = [own[self._of_shard(own, number)] for own in keys.values()]
                header.keys = len(wanted) + sum(map(len, wanted))
                section = outbox.lend([(header.keys, 1)], _KEYS_DTYPE)
                messages.pack_keys(wanted, section[0].reshape(-1))
            outbox.send(header, follow=section)

    def _of_shard(self, keys: Array, number: int) -> Array | slice:
        return keys_of_shard(keys, number, len(self._servers))

    def _split(self, rows: Mapping[str, Rows], number: int) -> list[Rows]:
        """The rows of each table that a shard has."""
        found = []
        for keys, values in rows.values():
            own = self._of_shard(keys, number)
            found.append(Rows(keys[own], np.ascontiguousarray(values[own])))
        return found

    def _take_up(self, step: int, keys: Mapping[str, Array], numbers: Sequence[int] | None = None) -> None:
        """Copy each shard's answer into the parameters, and the rows of these keys to where rows go, as it comes.
        ``numbers``: the shards that were asked, if not all."""
        rooms: dict[str, Array] = {}

        def take(number: int, letter: Letter) -> None:
            self._expect(letter, Kind.PARAMETERS, step, number)
            self._reached[number] = step + letter.header.ahead
            if letter.header.is_late:
                self._take_back(number)
            self._refresh(number, letter)
            if keys:
                self._place(rooms, keys, number, letter)

        self._receive(take, numbers)
        for name, room in rooms.items():
            assert self._rows is not None
            self._rows.put(name, keys[name], room)

    def _take_back(self, number: int) -> None:
        """A shard has dropped the last push: what that held of earlier gradients is to be pushed later."""
        self._dropped += 1
        if self._encoders and self._gradient is not None:
            self._encoders[number].take_back(self._gradient[self._shards[number]])

    def _place(self, rooms: dict[str, Array], keys: Mapping[str, Array], number: int, letter: Letter) -> None:
        """Put the rows of a letter where their keys stand among all that were asked for. Those that the only shard has
        lent stay where they are: it lends two memories in turn, and writes to this one when it is asked for the rows
        after the next."""
        assert self._rows is not None
        places = [self._of_shard(own, number) for own in keys.values()]
        counts = [len(own[place]) for own, place in zip(keys.values(), places, strict=True)]
        widths = [self._rows.widths[name] for name in keys]
        rows = messages.take_rows(letter.more, counts, widths, self._dense.dtype)
        if letter.header.is_lent and len(self._servers) == 1:
            rooms.update(zip(keys, rows, strict=True))
            return
        if not rooms:
            rooms.update({name: self._rows.room(name, len(own)) for name, own in keys.items()})
        for room, place, values in zip(rooms.values(), places, rows, strict=True):
            if isinstance(place, slice):
                room[place] = values
            else:
                self._decoder.scatter_rows(room, values, place)

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

    def _serve_all(self, server: Server, step: int) -> None:
        """Serve this rank's shard until all workers have what they need to go on: they may go on to a collective, in
        which nobody serves."""
        while not server.has_met(step):
            server.go_on(server.wait_any(server.tickets()))

    def _expect(self, letter: Letter, kind: Kind, step: int, number: int) -> None:
        header = letter.header
        if header.kind is not kind or header.step != step:
            raise CommError(f"shard {number} answered {header.kind.name} of step {header.step} at step {step}")

    def _receive(self, take: Take, numbers: Sequence[int] | None = None) -> None:
        """One letter of each shard, or of these ``numbers``, as they come; this rank's own shard is served
        meanwhile."""
        waiting = list(self._numbers if numbers is None else numbers)
        for number in waiting:  # not before there is something to wait for: the shards are at work meanwhile
            if not self._is_listening[number]:
                self._inboxes[number].listen()
            self._is_listening[number] = False
        if waiting == [0] and self._server is None:
            self._transport.wait(self._inboxes[0].ticket)
            while not self._taken(0, take):
                self._transport.wait(self._inboxes[0].ticket)
            return
        while waiting:
            position = self._wait_for_one([self._inboxes[number].ticket for number in waiting])
            if position is not None and self._taken(waiting[position], take):
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
