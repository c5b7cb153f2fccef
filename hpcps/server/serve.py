"""The loop of a shard: letters of workers in, answers out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from hpcps import aligned
from hpcps.comm.codes import Code
from hpcps.comm.memory import Memory
from hpcps.comm.transport import Array, Ticket, Transport
from hpcps.errors import CommError, CommTimeout, PeerLost
from hpcps.rows import Found, Rows
from hpcps.server import messages
from hpcps.server.messages import ANSWER_TAG, CODES, NO_LOOK, REQUEST_TAG, SAME_KEYS, Counts, Header, Kind
from hpcps.server.nearby import letter_memory, nearby
from hpcps.server.post import Form, Inbox, Letter, Outbox
from hpcps.server.replica import Replication
from hpcps.server.shown import NOT_SHOWN, Shown
from hpcps.server.shown import pack as pack_shown
from hpcps.server.store import Shard
from hpcps.sums import NO_ROWS, NOT_FOUND, Decoder, Summed

Wanted = Mapping[str, Array]
"""The rows of each table that a worker asked for."""
NOTHING: Wanted = {}
NOTHING_TOLD = np.empty(0, np.uint8)


class Asked(NamedTuple):
    """What a worker that waits for an answer has told."""

    step: int
    slack: int
    layout: int
    wanted: Wanted


class Turns(Protocol):
    """In which order a shard takes the letters of its workers."""

    def next(self) -> int | None:
        """The worker whose letter must be next; None: whichever comes first."""

    def taken(self, worker: int) -> None:
        """A letter of ``worker`` has been taken."""

    def finished(self) -> None:
        """All have been taken."""


class AsTheyCome:
    """Letters are taken as they come."""

    def next(self) -> int | None:
        return None

    def taken(self, worker: int) -> None:
        """Nothing is kept."""

    def finished(self) -> None:
        """Nothing is kept."""


class Server:
    """Serves one shard to ``workers`` (their ranks, in worker order) until each of them has finished.

    ``pieces``: of how many arrays each worker's gradient is. ``memory``: as the workers' clients have it. With it no
    push may ask to be applied at once, for workers may read the parameters while the shard does not know of it.
    ``copies``: some pushes will ask for that, so that parameters may change while an answer is under way: answers are
    copies, as they are after the first such push anyway, and where the shard does not wait for all workers.
    ``replication``: of this shard, and of another on this rank. ``code``: what gradients are pushed as; ``letters``:
    memory for keys and rows that need not travel, as the workers'; tables that are shown are so to workers which have
    it, where no push may ask to be applied at once. ``keep``: called when all workers have asked for a
    checkpoint. ``tags``: of the letters that come, and of the answers.
    """

    def __init__(
        self,
        transport: Transport,
        shard: Shard,
        number: int,
        workers: Sequence[int],
        decoder: Decoder,
        pieces: Sequence[int],
        turns: Turns | None = None,
        memory: Memory | None = None,
        copies: bool = False,
        replication: Replication | None = None,
        code: Code | None = None,
        letters: Memory | None = None,
        keep: Callable[[], None] | None = None,
        tags: tuple[int, int] = (REQUEST_TAG, ANSWER_TAG),
    ) -> None:
        self._transport = transport
        self._keep = keep
        self._shard = shard
        self._number = number
        self._rows_dtype = decoder.rows_dtype
        self._widths = [table.width for table in shard.tables.values()]
        self._turns: Turns = turns or AsTheyCome()
        count, self._is_seen = len(shard.params), memory is not None
        near = [nearby(memory, rank) for rank in workers]
        self._code = code
        self._decoded = [aligned.empty(count, decoder.dtype) for _ in workers] if code else []
        dtype, most = (decoder.dtype, count) if code is None else (CODES, code.message_bytes(count))
        self._inboxes = [
            Inbox(transport, rank, tags[0], dtype, own * most, None, one, letter_memory(letters, rank))
            for rank, own, one in zip(workers, pieces, near, strict=True)
        ]
        self._outboxes = [
            Outbox(transport, rank, tags[1], one, memory=letter_memory(letters, rank))
            for rank, one in zip(workers, near, strict=True)
        ]
        self._sees_tables = [letter_memory(letters, rank) is not None for rank in workers]
        self._layout, self._shown = NOT_SHOWN, list[Shown]()
        self._answers: dict[int, tuple[int, Form]] = {}
        self._repeated: list[Letter | None] = [None] * len(workers)
        self._gradients: dict[int, Summed] = {}
        self._open = list(range(len(workers)))
        self._ranks = list(workers)
        self._kept: list[tuple[Inbox, Letter]] = []
        self._waiting: dict[int, Asked] = {}
        self._copies: dict[int, Array] = {}
        self._may_change = copies or not shard.waits_for_all
        self._met = [0] * len(workers)
        self._came: set[int] = set()
        self._asked: dict[int, list[Array]] = {}
        self._found: dict[int, Mapping[str, Found]] = {}
        self._letters = 0
        self._replication = replication

    def run(self) -> None:
        """Block until every worker has said that it is finished. Raises CommTimeout, PeerLost, CommError."""
        while not self.is_finished:
            try:
                self.go_on(self.wait_any(self.tickets()))
            except PeerLost:
                if self._replication is None or not self._replication.goes_on():
                    raise
                self._answer_all()  # some may have waited for a follower
        self.flush()

    def wait_any(self, tickets: Sequence[Ticket]) -> int:
        """Block until one of the tickets is done and return its position. A CommTimeout says whose step is missing."""
        try:
            return self._transport.wait_any(tickets)
        except CommTimeout as error:
            step, workers = self._shard.lacks(self._open)
            late = ", ".join(str(self._ranks[worker]) for worker in workers)
            lacks = f"lacks step {step} of rank(s) {late}" if late else "has all steps"
            raise CommTimeout(f"shard {self._number} {lacks}: {error}") from error

    @property
    def is_finished(self) -> bool:
        """Whether every worker has said that it is finished, and so have the ranks of replicas."""
        return not self._open and (self._replication is None or self._replication.is_finished)

    def tickets(self) -> list[Ticket]:
        """What the server waits for: when the i-th is done, :meth:`go_on` with i."""
        tickets = [self._inboxes[worker].ticket for worker in self._next()]
        return tickets if self._replication is None else tickets + self._replication.tickets()

    def go_on(self, position: int) -> None:
        """Take what has come with the ticket at ``position`` of :meth:`tickets`."""
        workers = self._next()
        if position >= len(workers):
            assert self._replication is not None
            self._replication.go_on(position - len(workers))
            self._answer_all()
            return
        worker = workers[position]
        inbox = self._inboxes[worker]
        letter = inbox.take()
        if letter is None:
            return
        self._letters += 1
        self._turns.taken(worker)
        if letter is self._repeated[worker]:
            self._take_again(worker, inbox, letter)
            return
        if letter.header.kind is Kind.FINISH:
            self._finish(worker)
            return
        if letter.header.kind in (Kind.MEET, Kind.KEEP):
            keeps = letter.header.kind is Kind.KEEP
            inbox.give_back(letter)
            inbox.listen()
            self._meet(worker, keeps)
            return
        is_kept = self._handle(worker, letter)
        self._answer_all()
        if is_kept:
            self._kept.append((inbox, letter))
        else:
            inbox.give_back(letter)
            while self._kept and self._shard.is_settled:
                box, old = self._kept.pop()
                box.give_back(old)
        self._repeated[worker] = letter if self._may_repeat(worker, letter) else None
        inbox.listen()

    def _take_again(self, worker: int, inbox: Inbox, letter: Letter) -> None:
        """A push and pull like the last of the only worker, which has been looked at: the answer first."""
        step = letter.header.step
        self._shard.push(worker, step, self._gradients[worker])
        self._met[worker] = step
        self._shard.seen(worker)
        self._answers[worker][1].send(step)
        inbox.give_back(letter)
        inbox.listen()

    def _may_repeat(self, worker: int, letter: Letter) -> bool:
        """Whether a letter like this one can be taken without another look at it."""
        header, is_alone = letter.header, len(self._inboxes) == 1 and not self._widths and self._replication is None
        is_synchronous = header.slack == 0 and not self._may_change and self._code is None
        return is_alone and is_synchronous and header.kind is Kind.PUSH_PULL and worker in self._answers

    def _next(self) -> Sequence[int]:
        """The workers whose letters may be taken next."""
        turn = self._turns.next() if self._open else None
        return self._open if turn is None else (turn,)

    def has_met(self, step: int) -> bool:
        """Whether all workers have been given parameters that contain all of ``step``."""
        return min(self._met) >= step

    def flush(self) -> None:
        """Block until all answers have left."""
        for outbox in self._outboxes:
            outbox.flush()
        if self._replication is not None:
            self._replication.flush()

    def _finish(self, worker: int) -> None:
        self._open.remove(worker)
        if self._open:
            return
        self._turns.finished()
        if self._replication is not None:
            self._replication.finish()
        shard = self._shard
        received, sent = sum(box.received_bytes for box in self._inboxes), sum(b.sent_bytes for b in self._outboxes)
        done = shard.updates, shard.duplicates, self._letters, received, sent, dict(shard.staleness)
        counts = Counts(*done, *shard.late).packed()
        for number, outbox in enumerate(self._outboxes):
            outbox.send(Header(Kind.COUNTS, number, self._number, keys=len(counts)), follow=[counts])

    def _meet(self, worker: int, keeps: bool) -> None:
        self._came.add(worker)
        if len(self._came) == len(self._inboxes):
            self._came.clear()
            if keeps and self._keep is not None:
                self._keep()
            for number, outbox in enumerate(self._outboxes):
                outbox.send(Header(Kind.MET, number, self._number))

    def _handle(self, worker: int, letter: Letter) -> bool:
        """Do what a letter asks; returns whether its memory is still needed."""
        header = letter.header
        if header.worker != worker or header.shard != self._number:
            raise CommError(f"shard {self._number} got worker {header.worker}'s message for shard {header.shard}")
        if header.kind is Kind.PULL:
            wanted = self._wanted(worker, letter) if header.keys else NOTHING
            self._waiting[worker] = Asked(header.step, header.slack, header.layout, wanted)
            return False
        keys, behind = self._keys(worker, letter)
        found = self._found[worker] if header.keys == SAME_KEYS else NOT_FOUND
        if header.has_slots:
            slots, behind = messages.unpack_slots(behind, keys)
            found = self._looked_up(header.layout, keys, slots)
        dense = self._dense(worker, letter)
        rows = self._rows(letter, keys, behind) if header.keys else NO_ROWS
        if header.at_once and (self._is_seen or self._shown):
            raise CommError(f"worker {worker} pushed to be applied at once to parameters that others may be reading")
        self._may_change |= header.at_once
        gradient = self._gradients[worker] = Summed(dense, header.scale, rows, found=found)
        is_kept = self._shard.push(worker, header.step, gradient, header.at_once)
        if header.kind is Kind.PUSH_PULL:
            self._waiting[worker] = Asked(header.step, header.slack, header.layout, NOTHING)
        return is_kept

    def _keys(self, worker: int, letter: Letter) -> tuple[list[Array], Array]:
        """The keys of each table that a letter is about, and the bytes behind those that came with it."""
        header = letter.header
        if header.keys >= 0:
            return messages.unpack(letter.more, header, len(self._widths))
        if worker not in self._asked:
            raise CommError(f"worker {worker} names the keys of a pull that shard {self._number} has not had")
        keys = self._asked[worker]
        return (keys, letter.more) if header.keys == SAME_KEYS else messages.unpack_picked(letter.more, keys)

    def _wanted(self, worker: int, letter: Letter) -> Wanted:
        """The rows that a pull asks for."""
        keys, _ = self._keys(worker, letter)
        keys = self._asked[worker] = [own.copy() for own in keys]
        self._found[worker] = {name: Found(own) for name, own in zip(self._shard.tables, keys, strict=True)}
        return dict(zip(self._shard.tables, keys, strict=True))

    def _dense(self, worker: int, letter: Letter) -> Array:
        """The dense gradient of a push: (n,), or pieces of it (m, n)."""
        header = letter.header
        if self._code is not None:
            if not self._shard.has_had(worker, header.step):  # else what is there may still be needed
                self._code.decode(self._decoded[worker], letter.dense)
            return self._decoded[worker]
        if header.pieces == 1:
            return letter.dense
        return letter.dense.reshape(header.pieces, header.count // header.pieces)

    def _answer_all(self) -> None:
        """Answer the workers that wait for what the parameters contain now."""
        if self._waiting and (self._replication is None or self._replication.is_followed()):
            contains = self._shard.contains
            ready = [worker for worker, asked in self._waiting.items() if contains(asked.step, asked.slack)]
            for worker in ready:
                self._answer(worker, self._waiting.pop(worker))

    def _rows(self, letter: Letter, keys: list[Array], behind: Array) -> dict[str, Rows]:
        """The rows' gradients of a push."""
        dtype = letter.header.rows_dtype
        if dtype != self._rows_dtype and behind.size:
            raise CommError(f"worker {letter.header.worker} pushed rows of {dtype}, not {self._rows_dtype}")
        values = messages.take_rows(behind, [len(own) for own in keys], self._widths, dtype)
        return {name: Rows(*pair) for name, *pair in zip(self._shard.tables, keys, values, strict=True)}

    def _answer(self, worker: int, asked: Asked) -> None:
        """Send fresh parameters to a worker, and tell where tables are. Parameters are copied where they may change
        before they have left: unless all workers' pushes are added up, and none can be without this worker's next."""
        shard, outbox, (step, slack, known, wanted) = self._shard, self._outboxes[worker], asked
        shard.seen(worker)
        params, layout = shard.params, self._layout_for(worker)
        knows = known in (layout, NO_LOOK)
        if slack == 0 and (wanted or knows):
            self._met[worker] = step  # else it comes again, for it may not be able to look
        tells = layout != NOT_SHOWN and not knows
        if self._may_change or slack != 0:
            outbox.flush()
            if worker not in self._copies:
                self._copies[worker] = np.empty_like(params)
            self._copies[worker][:] = params
            params = self._copies[worker]
        elif not wanted and not tells:
            if self._answers.get(worker, (None,))[0] != layout:
                outbox.flush()
                self._answers[worker] = layout, outbox.form(self._answer_header(worker, 0, layout), params)
            self._answers[worker][1].send(step)
            return
        follow = self._follow(outbox, worker, wanted, pack_shown(self._shown) if tells else NOTHING_TOLD)
        outbox.send(self._answer_header(worker, step, layout), params, follow)

    def _answer_header(self, worker: int, step: int, layout: int) -> Header:
        shard, dtype = self._shard, self._shard.params.dtype
        header = Header(Kind.PARAMETERS, worker, self._number, step, dtype=dtype, rows_dtype=dtype, layout=layout)
        header.is_late, header.ahead = shard.take_late(worker), shard.ahead(step)
        return header

    def _follow(self, outbox: Outbox, worker: int, wanted: Wanted, told: Array) -> Sequence[Array]:
        """The rows that a worker asked for, and what it is told of tables, in memory of its outbox."""
        if not wanted and not len(told):
            return ()
        tables, dtype = self._shard.tables, self._shard.params.dtype
        shapes = [(len(own), tables[name].width) for name, own in wanted.items()]
        sections = outbox.lend([*shapes, (1, len(told) // dtype.itemsize)], dtype)
        if wanted:
            self._shard.gather(sections[:-1], wanted, self._found[worker])
        sections[-1].reshape(-1).view(np.uint8)[:] = told
        return sections

    def _layout_for(self, worker: int) -> int:
        """The layout of the tables, if the worker sees them, and may look at them."""
        if self._may_change or not self._sees_tables[worker] or not self._widths:
            return NOT_SHOWN
        layout = self._shard.layout
        if layout != self._layout:
            shown = [table.shown() for table in self._shard.tables.values()]
            self._layout, self._shown = layout, [one for one in shown if one is not None and None not in shown]
        return layout if self._shown else NOT_SHOWN

    def _looked_up(self, layout: int, keys: Sequence[Array], slots: Sequence[Array]) -> Mapping[str, Found]:
        """Where a worker has found the rows of these keys, unless they may lie elsewhere by now."""
        if layout != self._shard.layout:
            return NOT_FOUND
        found = {}
        for (name, table), own, its_slots in zip(self._shard.tables.items(), keys, slots, strict=True):
            is_whole = not len(own) or bool(its_slots.min() >= 0)
            found[name] = Found(own, its_slots if is_whole else its_slots.copy(), is_whole, table.layout)
        return found
