"""A worker's connection to shards on other ranks: push a gradient, pull parameters."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from hpcps.comm.codes import Code
from hpcps.comm.memory import Memory
from hpcps.comm.transport import Array, Transport
from hpcps.errors import CommError, PeerLost
from hpcps.rows import Picked, PulledRows, Rows
from hpcps.server import messages
from hpcps.server.client import Traffic
from hpcps.server.filters import Encoder
from hpcps.server.messages import CODES, SAME_KEYS, SOME_KEYS, Counts, Header, Kind, Section
from hpcps.server.nearby import for_others
from hpcps.server.post import Form, Letter
from hpcps.server.serve import Server
from hpcps.server.sharding import keys_of_shard
from hpcps.server.shown import Looks, Viewer
from hpcps.server.ways import Again, Ways
from hpcps.snapshot import Flat, Pieces, Snapshot, in_memory
from hpcps.sums import Decoder, Summed

NO_KEYS: Mapping[str, Array] = {}


class RemoteClient:
    """Shards on other ranks, or, where ``server`` is given, one of them on this rank too: it is served while this
    worker waits.

    ``dense``: the worker's copy of the dense parameters, (n,), of which shard s has ``shards[s]``; ``rows``: where
    rows go, if the model has tables. Both are written as answers arrive. ``memory``: what the ranks of the node share,
    if arrays are to be named that lie there; ``code``: what gradients are pushed as; ``letters``: memory for keys and
    rows that need not travel in the node. The shards have all three, too. ``workers``: how many there are, of which
    this is number ``worker``. ``copies``: the ranks that serve the shards when theirs are lost, and spared.
    ``viewer``: how to look at tables that shards of this node show, instead of asking for rows.
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
        copies: Sequence[int] = (),
        viewer: Viewer | None = None,
    ) -> None:
        self._workers = workers
        self._looks = Looks(viewer, len(servers))
        self._dense = dense
        self._rows = rows
        self._shards = shards
        self._worker = worker
        self._server = server
        self._decoder = decoder
        self._targets = [self._dense[shard] for shard in shards]
        copy = for_others(decoder.stream)
        self._ways = Ways(transport, servers, self._targets, server, memory, letters, copies, copy)
        self._outboxes, self._numbers = self._ways.outboxes, self._ways.numbers
        self._encoders = [Encoder(code, len(target), decoder.dtype) for target in self._targets] if code else []
        self._fresh: list[Letter | None] = [None] * len(servers)
        self._pushed: Summed | None = None
        self._slack = 0
        self._last: tuple[int, Summed, int] | None = None
        """The last push: its step, gradient and slack"""
        self._may_lack = [False] * len(servers)
        """Of each shard, whether it has not answered what came after that"""
        self._knows_keys = [True] * len(servers)
        """Of each shard, whether it has the keys of the last pull"""
        self._reached = [0] * len(servers)
        self._dropped = self._skipped = 0
        self._forms: list[Form] = []
        self._asking: dict[tuple[int, int], tuple[int, Form]] = {}
        """Pulls of no rows, and the layout that they tell, by shard and slack"""
        self._due: set[int] = set()
        """The shards that are to answer the last push, as if a pull of no rows had followed it"""
        self._step = 0
        self._is_settled = True
        self._asked = NO_KEYS
        self._waited_s = 0.0
        if rows is not None:
            rows.pull = self.fetch

    def push(self, step: int, gradient: Summed, slack: int = 0) -> None:
        self._last = step, gradient, slack
        self._may_lack = [True] * len(self._shards)
        self._looks.pushed()
        if self._rows is None and not self._is_prepared(gradient, slack):
            self._prepare(gradient, slack)
        is_asked = self._rows is not None and self._are_asked(gradient.picked or gradient.rows)
        for number in self._numbers:
            if self._encoders:
                self._encoders[number].encode(gradient.dense[..., self._shards[number]])
            try:
                self._send_push(number, step, gradient, slack, is_asked)
            except PeerLost as error:
                self._turn_to_copy(number, error)
        self._is_settled = slack != 0  # such a push is applied as it comes

    def pull(self, step: int, keys: Mapping[str, Array] | None, slack: int = 0) -> int:
        started = time.perf_counter()
        self._step = step
        if self._rows is None:  # the push has asked
            self._take_up(step, NO_KEYS, slack, self._turn_and_push, self._numbers, {})
        if self._rows is not None or (keys is None and slack != 0):
            self._get(step, keys or NO_KEYS, 0 if keys is None else slack)
        if self._server is not None and slack == 0:
            self._serve_all(self._server, step)
        self._waited_s += time.perf_counter() - started
        return max(self._reached)

    def go_on(self, step: int, keys: Mapping[str, Array] | None) -> None:
        started = time.perf_counter()
        self._skipped += step - self._step
        self._step = step
        behind = [number for number, reached in enumerate(self._reached) if keys or reached < step]
        self._get(step, keys or NO_KEYS, slack=0, numbers=behind)
        self._waited_s += time.perf_counter() - started

    def fetch(self, keys: Mapping[str, Array]) -> None:
        self._get(self._step, keys, slack=0)

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
        found: dict[int, Counts] = {}

        def take(number: int, letter: Letter) -> None:
            self._expect(letter, Kind.COUNTS, 0, number)
            found[number] = Counts.unpacked(letter.more[: 8 * letter.header.keys].view(np.int64))

        def end_without(number: int, error: PeerLost) -> bool:
            if not self._ways.is_lost(number):
                raise error
            return False

        asked = []
        for number in self._numbers:
            if number not in self._ways.turned:
                try:
                    self._outboxes[number].send(Header(Kind.FINISH, self._worker, number))
                    asked.append(number)
                except PeerLost as error:
                    end_without(number, error)
        self._ways.receive(take, end_without, asked)
        for number in found:
            self._outboxes[number].flush()
        if self._server is not None:
            while not self._server.is_finished:
                self._server.go_on(self._server.wait_any(self._server.tickets()))
            self._server.flush()
        return [found[number] for number in sorted(found)]

    def traffic(self) -> Traffic:
        sent_bytes, received_bytes, requests = self._ways.traffic()
        late = {"dropped": self._dropped, "skipped": self._skipped}
        return Traffic(self._waited_s, sent_bytes, received_bytes, requests, **late)

    def _turn_to_copy(self, number: int, error: PeerLost) -> None:
        """Go on with the copy of a shard that is lost, and push again what it may not have had. Raises ``error`` where
        it is not lost, or there is no copy."""
        self._ways.turn_to_copy(number, error)
        self._fresh[number], self._knows_keys[number] = None, False
        self._due.discard(number)
        self._looks.forget(number)
        self._asking.clear()  # of ways that are given up
        if self._last is None:
            return
        step, gradient, slack = self._last
        if self._rows is None:
            self._forms[number] = self._form(number, gradient, slack)
        if self._may_lack[number]:
            self._send_push(number, step, gradient, slack, is_asked=False)

    def _turn_and_push(self, number: int, error: PeerLost) -> bool:
        self._turn_to_copy(number, error)
        return True

    def _meet(self, kind: Kind) -> None:
        for number, outbox in enumerate(self._outboxes):
            outbox.send(Header(kind, self._worker, number))

        def give_up(number: int, error: PeerLost) -> bool:
            raise error  # others may have met already

        self._ways.receive(lambda number, letter: self._expect(letter, Kind.MET, 0, number), give_up)
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
        self._forms = [self._form(number, gradient, slack) for number in self._numbers]

    def _form(self, number: int, gradient: Summed, slack: int) -> Form:
        header = self._push_header(Kind.PUSH_PULL, number, gradient, slack)
        return self._outboxes[number].form(header, self._place_of(gradient, number))

    def _place_of(self, gradient: Summed, number: int) -> Array:
        """Where what is pushed to a shard lies."""
        return self._encoders[number].message if self._encoders else gradient.dense[..., self._shards[number]]

    def _send_push(self, number: int, step: int, gradient: Summed, slack: int, is_asked: bool) -> None:
        """Start to push to a shard what has been encoded for it, if it is coded. ``is_asked``: as of `_follow`."""
        if self._rows is None:
            self._forms[number].send(step)
            return
        asks = slack == 0 and self._looks.can(number)
        header = self._push_header(Kind.PUSH_PULL if asks else Kind.PUSH, number, gradient, slack)
        header.step = step
        follow = self._follow(header, gradient, number, is_asked)
        self._outboxes[number].send(header, self._place_of(gradient, number), follow, may_lend=self._is_settled)
        if asks:
            self._due.add(number)

    def _push_header(self, kind: Kind, number: int, gradient: Summed, slack: int) -> Header:
        pieces = 1 if gradient.dense.ndim == 1 else len(gradient.dense)
        encodings = CODES if self._encoders else self._decoder.dtype, self._decoder.rows_dtype
        header = Header(kind, self._worker, number, 0, 0, *encodings, pieces, gradient.scale, slack=slack)
        header.at_once, header.layout = slack != 0, self._looks.known(number, slack)
        return header

    def _are_asked(self, rows: Mapping[str, Rows] | Mapping[str, Picked]) -> bool:
        """Whether these rows are those that were asked for last: then the shards know their keys."""
        asked = self._asked
        return (
            bool(rows)
            and rows.keys() == asked.keys()
            and all(own.keys is asked[name] or np.array_equal(own.keys, asked[name]) for name, own in rows.items())
        )

    def _follow(self, header: Header, gradient: Summed, number: int, is_asked: bool) -> list[Section]:
        """The keys and rows for one shard, or the rows alone if it knows the keys. ``is_asked``: whether they are of
        the keys of the last pull."""
        rows = self._split(gradient.rows, number)
        if not rows:
            return []
        if is_asked and self._knows_keys[number] and gradient.picked:
            header.keys = SOME_KEYS
            return messages.sections([messages.pack_picked(self._kept(gradient, number))], [own.values for own in rows])
        if is_asked and self._knows_keys[number]:
            header.keys = SAME_KEYS
            return messages.sections([], [own.values for own in rows])
        keys = messages.keys_section([own.keys for own in rows])
        header.keys = sum(map(len, keys))
        told, slots = [keys], self._looks.slots(number)
        if slots is not None and is_asked and self._workers == 1:  # else rows of several workers are merged first
            header.has_slots = True
            if gradient.picked:
                slots = [own[kept] for own, kept in zip(slots, self._kept(gradient, number), strict=True)]
            told.append(tuple(slots))
        return messages.sections(told, [own.values for own in rows])

    def _kept(self, gradient: Summed, number: int) -> list[Array]:
        """Which of the rows of a shard that were asked for a push is of, (k,) bool for each table."""
        return [own.are_in[self._of_shard(own.keys, number)] for own in gradient.picked.values()]

    def _get(self, step: int, keys: Mapping[str, Array], slack: int, numbers: Sequence[int] | None = None) -> None:
        """Ask for fresh parameters, and the rows of these keys, and wait for them. ``numbers``: these shards alone.
        Rows that are shown are not asked for, nor parameters that are fresh."""
        self._asked = keys or self._asked
        self._is_settled |= slack == 0
        numbers = self._numbers if numbers is None else numbers
        may_look = bool(keys) and slack == 0 and (self._last is None or self._last[0] <= step)
        looks = {number for number in numbers if may_look and self._looks.can(number)}
        rooms: dict[str, Array] = {}
        told: list[int] = []

        def ask(number: int) -> None:
            if number in self._due:
                self._due.remove(number)
                return
            self._ask(number, step, NO_KEYS if number in looks else keys, slack)

        def ask_again(number: int, error: PeerLost) -> bool:
            self._turn_to_copy(number, error)
            looks.discard(number)
            ask(number)
            return True

        def get(asked: Sequence[int]) -> None:
            for number in asked:
                try:
                    ask(number)
                except PeerLost as error:
                    ask_again(number, error)
            if asked:
                self._take_up(step, keys, slack, ask_again, asked, rooms, looks, told)

        get([number for number in numbers if number not in looks or not self._looks.is_fresh(number, step)])
        if told:
            again = told.copy()
            looks.difference_update([number for number in again if not self._looks.can(number)])
            get(again)
        for number in looks:
            self._look(number, keys, rooms)
        for name, room in rooms.items():
            assert self._rows is not None
            self._rows.put(name, keys[name], room)

    def _look(self, number: int, keys: Mapping[str, Array], rooms: dict[str, Array]) -> None:
        """Pick the rows of these keys out of the tables that a shard shows."""
        self._make_rooms(rooms, keys)
        self._knows_keys[number] = False
        if len(self._shards) == 1:
            self._looks.read(number, list(keys.items()), list(rooms.values()))
            return
        places = [self._of_shard(own, number) for own in keys.values()]
        wanted = [(name, own[place]) for (name, own), place in zip(keys.items(), places, strict=True)]
        parts = [np.empty((len(own), rooms[name].shape[1]), self._dense.dtype) for name, own in wanted]
        self._looks.read(number, wanted, parts)
        self._scatter(rooms, parts, places)

    def _scatter(self, rooms: Mapping[str, Array], parts: Sequence[Array], places: Sequence[Array | slice]) -> None:
        """Put a shard's rows where their keys stand among all that were asked for."""
        for room, place, values in zip(rooms.values(), places, parts, strict=True):
            if isinstance(place, slice):
                room[place] = values
            else:
                self._decoder.scatter_rows(room, values, place)

    def _make_rooms(self, rooms: dict[str, Array], keys: Mapping[str, Array]) -> None:
        """Memory where the rows of these keys come together, unless there is."""
        assert self._rows is not None
        if not rooms:
            rooms.update({name: self._rows.room(name, len(own)) for name, own in keys.items()})

    def _ask(self, number: int, step: int, keys: Mapping[str, Array], slack: int) -> None:
        outbox = self._outboxes[number]
        layout = self._looks.known(number, slack)
        if not keys:
            told, form = self._asking.get((number, slack), (None, None))
            if form is None or told != layout:
                outbox.flush()
                form = outbox.form(Header(Kind.PULL, self._worker, number, slack=slack, layout=layout))
                self._asking[number, slack] = layout, form
            form.send(step)
            return
        wanted = [own[self._of_shard(own, number)] for own in keys.values()]
        header = Header(Kind.PULL, self._worker, number, step, slack=slack, layout=layout)
        section = messages.keys_section(wanted)
        header.keys = sum(map(len, section))
        self._knows_keys[number] = True
        self._looks.asked(number)
        outbox.send(header, follow=[section])

    def _of_shard(self, keys: Array, number: int) -> Array | slice:
        return keys_of_shard(keys, number, len(self._shards))

    def _split(self, rows: Mapping[str, Rows], number: int) -> list[Rows]:
        """The rows of each table that a shard has."""
        found = []
        for keys, values in rows.values():
            own = self._of_shard(keys, number)
            found.append(Rows(keys[own], np.ascontiguousarray(values[own])))
        return found

    def _take_up(
        self,
        step: int,
        keys: Mapping[str, Array],
        slack: int,
        again: Again,
        numbers: Sequence[int],
        rooms: dict[str, Array],
        looks: Collection[int] = (),
        told: list[int] | None = None,
    ) -> None:
        """Copy each shard's answer into the parameters, as it comes, and the rows of these keys into ``rooms``.
        ``numbers``: the shards that were asked; ``looks``: those that were not asked for rows; ``told`` gets those that
        told of another layout, and not in an answer with rows."""

        def take(number: int, letter: Letter) -> None:
            self._expect(letter, Kind.PARAMETERS, step, number)
            self._may_lack[number] = False
            self._reached[number] = step + letter.header.ahead
            if letter.header.is_late:
                self._take_back(number)
            self._refresh(number, letter)
            has_rows = keys and number not in looks
            if has_rows:
                self._place(rooms, keys, number, letter)
            is_new = slack == 0 and self._looks.answered(number, step, letter.header.layout, letter.more)
            if is_new and not has_rows and told is not None:
                told.append(number)

        self._ways.receive(take, again, numbers)

    def _take_back(self, number: int) -> None:
        """A shard has dropped the last push: what that held of earlier gradients is to be pushed later."""
        self._dropped += 1
        if self._encoders and self._last is not None:
            self._encoders[number].take_back(self._last[1].dense[self._shards[number]])

    def _place(self, rooms: dict[str, Array], keys: Mapping[str, Array], number: int, letter: Letter) -> None:
        """Put the rows of a letter where their keys stand among all that were asked for. Those that the only shard has
        lent stay where they are: it lends two memories in turn, and writes to this one when it is asked for the rows
        after the next."""
        assert self._rows is not None
        places = [self._of_shard(own, number) for own in keys.values()]
        counts = [len(own[place]) for own, place in zip(keys.values(), places, strict=True)]
        widths = [self._rows.widths[name] for name in keys]
        rows = messages.take_rows(letter.more, counts, widths, self._dense.dtype)
        if letter.header.is_lent and len(self._shards) == 1:
            rooms.update(zip(keys, rows, strict=True))
            return
        self._make_rooms(rooms, keys)
        self._scatter(rooms, rows, places)

    def _refresh(self, number: int, letter: Letter) -> None:
        """Copy a shard's dense parameters, unless they have come to where they are to be: as a long letter's do, and
        those that both ranks share."""
        if letter is self._fresh[number] or not letter.header.count:
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
            server.go_on(server.wait_any(server.tickets()))

    def _expect(self, letter: Letter, kind: Kind, step: int, number: int) -> None:
        header = letter.header
        if header.kind is not kind or header.step != step:
            raise CommError(f"shard {number} answered {header.kind.name} of step {header.step} at step {step}")
