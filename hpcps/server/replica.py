"""A copy of each shard on the rank of the next: it follows update by update, after the workers' gradients have been
added up, so it costs as much traffic as one worker (Li et al., OSDI 2014, section 4.3).

A shard answers its workers only when its follower has all that the answer contains. So when the rank of a shard is
lost its follower can go on where it was: it serves the copy from then on, without a copy of its own, and the workers
turn to it. At the end a shard and its copy compare what they have come to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from hpcps.comm.transport import Array, Ticket, Transport
from hpcps.errors import CommError, PeerLost
from hpcps.rows import Rows
from hpcps.server import messages
from hpcps.server.messages import FOLLOWED_TAG, UPDATE_TAG, Header, Kind, Section
from hpcps.server.post import Inbox, Letter, Outbox
from hpcps.server.store import Shard, Update

NOTHING: Array = np.empty(0, np.uint8)


class Served(Protocol):
    """A shard that is served: see :class:`hpcps.server.serve.Server`."""

    def tickets(self) -> list[Ticket]: ...

    def go_on(self, position: int) -> None: ...

    def flush(self) -> None: ...


class Replication:
    """Of a rank with a shard: sends its shard's updates to the ``follower`` (a rank), and follows the shard of the
    ``leader`` (a rank) with ``copy``, which begins as that shard does. ``take_over``: makes what serves the copy when
    the leader is lost, and spared; None: then the run ends."""

    def __init__(
        self,
        transport: Transport,
        number: int,
        own: Shard,
        copy: Shard,
        leader: int,
        follower: int,
        take_over: Callable[[Shard], Served] | None = None,
    ) -> None:
        self.followed = own.updates
        """The last update of the own shard that the follower has"""
        self._transport = transport
        self._number = number
        self._own = own
        self._copy = copy
        self._leader, self._follower = leader, follower
        self._take_over = take_over
        self._taken: Served | None = None
        self._has_finished = False
        self._to_follower = _Letters(transport, follower, UPDATE_TAG)
        self._to_leader = _Letters(transport, leader, FOLLOWED_TAG)
        most = len(copy.params)
        self._updates = Inbox(transport, leader, UPDATE_TAG, copy.params.dtype, most)
        self._answers = Inbox(transport, follower, FOLLOWED_TAG, copy.params.dtype, 0)
        self._leader_ended = self._follower_ended = False
        own.on_update = self._send

    @property
    def is_finished(self) -> bool:
        """Whether both the leader and the follower have come to their end."""
        return self._leader_ended and self._follower_ended

    def is_followed(self) -> bool:
        """Whether the follower has all of the own shard's updates, or there is none any more."""
        return self._follower_ended or self.followed == self._own.updates

    def tickets(self) -> list[Ticket]:
        """What is waited for: when the i-th is done, :meth:`go_on` with i."""
        tickets = [box.ticket for box in self._boxes()]
        return tickets if self._taken is None else tickets + self._taken.tickets()

    def go_on(self, position: int) -> None:
        """Take what has come with the ticket at ``position`` of :meth:`tickets`."""
        boxes = self._boxes()
        if position >= len(boxes):
            assert self._taken is not None
            self._taken.go_on(position - len(boxes))
            return
        box = boxes[position]
        letter = box.take()
        if letter is None:
            return
        if box is self._updates:
            self._follow(letter)
        else:
            self._note(letter)
        box.give_back(letter)
        if box in self._boxes():
            box.listen()

    def finish(self) -> None:
        """The own shard has had its last update, and all workers have had their last answer of any shard."""
        digest = _digest(self._own)
        self._tell_follower(Header(Kind.FINISH, 0, self._number, keys=len(digest)), follow=[digest])
        self._has_finished = True

    def goes_on(self) -> bool:
        """After a PeerLost: whether it was of the leader, whose shard is served from its copy from now on, or of the
        follower, without whom the own shard goes on. Either is told of once."""
        lost = self._transport.lost() if self._take_over is not None else []
        lacks_leader = self._leader in lost and not self._leader_ended
        lacks_follower = self._follower in lost and not self._follower_ended
        if lacks_leader:
            self._leader_ended = True
            if not self._has_finished and self._take_over is not None:
                self._taken = self._take_over(self._copy)
        self._follower_ended |= lacks_follower
        return lacks_leader or lacks_follower

    def flush(self) -> None:
        """Block until all has left."""
        lost = self._transport.lost()
        for letters, rank in ((self._to_follower, self._follower), (self._to_leader, self._leader)):
            if rank not in lost:
                letters.flush()
        if self._taken is not None:
            self._taken.flush()

    def _boxes(self) -> list[Inbox]:
        ended = (self._leader_ended, self._updates), (self._follower_ended, self._answers)
        return [box for has_ended, box in ended if not has_ended]

    def _send(self, update: Update) -> None:
        """Send the follower an update, which may be changed afterwards."""
        header = Header(Kind.UPDATE, 0, self._number, update.number, dtype=update.dense.dtype)
        header.rows_dtype, header.scale = update.dense.dtype, update.scale
        follow: list[Section] = [np.array(update.clocks, np.int64)]
        if update.rows:
            keys = np.concatenate(messages.keys_section([update.rows[name].keys for name in self._own.tables]))
            header.keys = len(keys)
            follow += messages.sections([keys], [update.rows[name].values for name in self._own.tables])
        self._tell_follower(header, update.dense.copy(), follow)

    def _tell_follower(self, header: Header, dense: Array = NOTHING, follow: Sequence[Section] = ()) -> None:
        if self._follower_ended:
            return
        try:
            self._to_follower.send(header, dense, follow)
        except PeerLost:  # in the midst of an update; who waits for the follower's answers hears of it, too
            if self._take_over is None or self._follower not in self._transport.lost():
                raise

    def _follow(self, letter: Letter) -> None:
        header = letter.header
        if header.kind is Kind.FINISH:
            theirs = letter.more[: 8 * header.keys].view(np.int64)
            if not np.array_equal(theirs, _digest(self._copy)):
                raise CommError(f"the copy of shard {header.shard} is not what the shard has come to")
            self._leader_ended = True
        else:
            workers = len(self._copy.clocks)
            clocks, more = messages.section(letter.more, workers)
            keys, behind = messages.unpack(more, header, len(self._copy.tables))
            rows = {}
            if header.keys:
                widths = [table.width for table in self._copy.tables.values()]
                values = messages.take_rows(behind, [len(own) for own in keys], widths, header.rows_dtype)
                rows = {name: Rows(*pair) for name, *pair in zip(self._copy.tables, keys, values, strict=True)}
            self._copy.follow(Update(header.step, letter.dense, rows, header.scale, clocks.tolist()))
        kind = Kind.FINISH if self._leader_ended else Kind.FOLLOWED
        self._to_leader.send(Header(kind, 0, header.shard, header.step))

    def _note(self, letter: Letter) -> None:
        if letter.header.kind is Kind.FINISH:
            self._follower_ended = True
        else:
            self.followed = letter.header.step


class _Letters:
    """Letters to one rank, which may be some behind: sending one waits for none."""

    def __init__(self, transport: Transport, peer: int, tag: int) -> None:
        self._way = transport, peer, tag
        self._boxes: list[Outbox] = []

    def send(self, header: Header, dense: Array = NOTHING, follow: Sequence[Section] = ()) -> None:
        """Start to send a letter; its sections are this object's from now on."""
        for box in self._boxes:
            if box.has_left():
                break
        else:
            box = Outbox(*self._way)
            self._boxes.append(box)
        box.send(header, dense, follow)

    def flush(self) -> None:
        """Block until all have left."""
        for box in self._boxes:
            box.flush()


def _digest(shard: Shard) -> Array:
    """What a shard has come to, in 32 bytes: its dense parameters and their state, its updates, and how many rows."""
    digest = hashlib.sha256()
    for array in (shard.params, *shard.state.values()):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(repr((shard.updates, [len(table) for table in shard.tables.values()])).encode())
    return np.frombuffer(digest.digest(), np.int64)
