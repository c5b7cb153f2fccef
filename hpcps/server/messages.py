"""The messages between workers and shards, version 11.

A *letter* is a header of 128 bytes and up to three sections: numbers of dense parameters, keys, and rows of tables. All
numbers are little-endian. A letter of up to FRONT_BYTES is one message: the header, then the sections one after the
other. Of a longer one the header travels alone; then comes the dense section, if it has any, as a message of its own,
then keys and rows, if there are any, as one more. Each section, and each table's rows, begins at a multiple of 64
bytes of its message. A dense section that lies in memory which both ranks see does not travel at all: the header says
where it lies.

====== ======= ============ =========================================================================
offset type    name         meaning
====== ======= ============ =========================================================================
0      4 bytes magic        ``HPPS``
4      u16     version      11
6      u16     kind         worker to shard: 1 push and pull, 2 finish, 3 push, 4 pull, 5 meet, 6 keep;
                            shard to worker: 16 parameters, 17 counts (answers finish), 18 met (answers meet, keep);
                            between shards: 32 update, 33 followed (answers update), 2 finish
8      u32     worker       number of the worker among the workers
12     u32     shard        number of the shard
16     i64     count        elements of the dense section
24     u16     encoding     of the dense section: 0 float32, 1 float64, 2 int64, 3 codes, which are bytes
26     u16     rows         encoding of the rows: as of the dense section, or 2 int64 fixed point
28     u32     pieces       push: into how many arrays of one length the dense section is cut; else 1
32     f64     scale        fixed point: what the rows were multiplied by (a power of two); update: what makes a mean
                            of the sum; else 1
40     i64     keys         elements of the section of keys; 0: there is none; -1: those of this worker's last pull;
                            -2: some of them
48     i64     slack        pull: how many steps of any other worker may be missing; -1: any number
56     i64     more         bytes of the sections of keys and rows
64     u32     at once      push: 0: to be added to the other workers' pushes of this step, 1: to be applied at once
68     u32     region       0: the dense section travels; else it lies in region ``region`` - 1 of the node's memory
72     i64     offset       where it begins in the sender's piece of that region, in bytes
80     u32     lent         0: keys and rows travel; 1: they lie in memory that the sender lends
84     u32     late         parameters: 1: this worker's push came when its step had been applied, and was dropped
88     i64     ahead        parameters: how many steps they contain beyond that of the pull
96     i64     layout       push, pull: the layout of the shard's tables that the worker knows; 0: none; -1: it looks
                            at none; parameters: the layout there is; 0: this worker does not see them
104    u32     slots        push: 1: the slots of the rows in that layout come with the keys; else 0
108            12 bytes     zero
120    i64     step         push: the step of the gradient, from 1; pull: the last step of this worker;
                            parameters: as in the pull
====== ======= ============ =========================================================================

What changes from letter to letter of one kind is often the step alone, so it comes last: a letter whose first 120 bytes
are those of the one before needs no other look.

Of keys and rows that are *lent* a ticket of 96 bytes travels in their place: by it the receiver borrows memory of the
sender, on the same node, at whose start they lie (``hpcps/comm/memory.py``). It may look at them until it answers; at
those of a push until it has answered that its parameters contain the step.

A *region* is what ``hpcps/comm/memory.py`` calls so: ranks of one node number theirs alike. A gradient that is named by
its place may be read, and added to, by the shard until the worker has the answer that contains its step. Parameters
that are may be read by the worker until its next push; so a shard names its own only where all pushes are added up, and
it refuses one that is to be applied at once. Where the worker's parameters are the shard's nothing is copied at all.

Tables may be *shown* to workers on the node of their shard: these look at them where they lie, between the answer that
contains all workers' steps and their next push (``hpcps/server/shown.py``). The answer to a pull that knows another
layout than there is tells where index and rows lie, behind the rows of the answer: two tickets and an i64 for each
table. If such a pull was of no rows, the worker pulls once more, with rows if it cannot look: before that it is served.
Of a shard whose tables it looks at a worker asks for fresh parameters with its push already. A shard that shows its
tables refuses a push that is to be applied at once. A worker that has looked may push the slots of its rows along with
the keys, i64 in a section behind them, -1 for a row that was not there: where the layout is still that one, the shard
does not look for them.

The dense section of a push is the worker's gradient; in a reproducible run it is the worker's pieces, one after the
other: the subtrees of grains that it owns whole (``hpcps/comm/order.py``). The shard adds the pieces of all workers in
tree order. Or it is the gradient in codes, see ``hpcps/server/filters.py``. That of an answer are the shard's dense
parameters.

Keys are i64 throughout: the number of keys of each table, in the order of the model's tables, then the keys, table
after table. The row of key r is on shard r modulo S. Where a push is of some keys of the worker's last pull, the
section has a bit for each of these instead, table after table, 1 for those that are meant: the first in the lowest bit
of a byte, and each table's in bytes of their own. The rows of a push are the gradients of its keys, table after table,
k times W numbers in the header's encoding of rows. The rows of an answer are the parameters of the keys asked for.

A shard drops a push of a step that it has had from this worker, so a push may be sent again. A shard that goes on
without late workers (``hpcps/server/backup.py``) drops what comes too late, says so once, in its next answer, and says
how far it is *ahead* of the pull. The worker goes on with the step after the newest that any shard has told of; before
that it pulls that one from the shards that were behind. So a worker may leave out steps, but pushes to no shard a step
beyond the one that this waits for.

When all workers have finished a shard answers each with its counts, as the section of keys: see ``Counts``. When all
workers have asked to meet it tells each; before that, where they have asked it to keep its state, it copies that for a
checkpoint.

With replicas a shard sends each update to its follower, on UPDATE_TAG, see ``hpcps/server/replica.py``: the sum of
the gradients and rows of which it consists, ``step`` its number. Before its keys is one more section, i64: of each
worker, up to which step the parameters contain all then. The follower answers on FOLLOWED_TAG. A finish of a
shard has a digest of what it has come to as its section of keys, and is answered by a finish.

Where the rank of a shard is lost, its follower serves the copy, with letters of its own tags. A worker sends it again
the push and the pull that have not been answered, with all keys. A shard that was lost is not told of a finish, nor is
who has taken it over: that is at an end when its own shard is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from hpcps.comm.memory import TICKET_BYTES
from hpcps.comm.transport import Array
from hpcps.errors import CommError

MAGIC = b"HPPS"
VERSION = 11
HEADER_BYTES = 128
FRONT_BYTES = 8192
ALIGNMENT_BYTES = 64
REQUEST_TAG = 16
ANSWER_TAG = 17
UPDATE_TAG = 18
FOLLOWED_TAG = 19
COPY_TAGS = 20, 21
"""As REQUEST_TAG and ANSWER_TAG, of a shard that is served from its copy"""
UNBOUNDED = -1
SAME_KEYS = -1
SOME_KEYS = -2
NO_LOOK = -1

_HEADER = struct.Struct("<4sHHIIqHHIdqqqIIqIIqqI12xq")
STEP_OFFSET = 120
_FLOAT32: np.dtype[Any] = np.dtype("<f4")
CODES = np.dtype(np.uint8)
_ENCODINGS = [_FLOAT32, np.dtype("<f8"), np.dtype("<i8"), CODES]
_CODES = {dtype: code for code, dtype in enumerate(_ENCODINGS)}


Section = Array | tuple[Array, ...]
"""An array, or several that come to lie one behind the other"""
Copy = Callable[[Array, Array], None]
"""Overwrites an array with another of the same shape and dtype."""


class Kind(IntEnum):
    """What a letter asks or brings."""

    PUSH_PULL = 1
    FINISH = 2
    PUSH = 3
    PULL = 4
    MEET = 5
    KEEP = 6
    PARAMETERS = 16
    COUNTS = 17
    MET = 18
    UPDATE = 32
    FOLLOWED = 33


_KINDS = {int(kind): kind for kind in Kind}


@dataclass(slots=True)
class Header:
    """The fields of a header that vary."""

    kind: Kind
    worker: int
    shard: int
    step: int = 0
    count: int = 0
    dtype: np.dtype[Any] = _FLOAT32
    rows_dtype: np.dtype[Any] = _FLOAT32
    pieces: int = 1
    scale: float = 1.0
    keys: int = 0
    slack: int = 0
    more: int = 0
    at_once: bool = False
    region: int = 0
    offset: int = 0
    is_lent: bool = False
    is_late: bool = False
    ahead: int = 0
    layout: int = 0
    has_slots: bool = False

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense section that travel."""
        return 0 if self.region else self.count * self.dtype.itemsize

    @property
    def more_bytes(self) -> int:
        """Bytes of the sections of keys and rows, or of a ticket for them, that travel."""
        return TICKET_BYTES if self.is_lent else self.more

    @property
    def is_one_message(self) -> bool:
        """Whether the sections travel in the header's message."""
        return HEADER_BYTES + padded(self.dense_bytes) + self.more_bytes <= FRONT_BYTES


def write(buffer: Array, header: Header) -> None:
    """Put the header in front of ``buffer`` (uint8)."""
    h = header
    dense = h.worker, h.shard, h.count, _CODES[h.dtype], _CODES[h.rows_dtype], h.pieces
    rest = h.scale, h.keys, h.slack, h.more, h.at_once, h.region, h.offset, h.is_lent, h.is_late, h.ahead
    _HEADER.pack_into(buffer.data, 0, MAGIC, VERSION, h.kind, *dense, *rest, h.layout, h.has_slots, h.step)


def read(buffer: Array) -> Header:
    """The header in front of a message that has arrived. Raises CommError if it is not one of ours."""
    fields = _HEADER.unpack_from(buffer.data)
    magic, version, kind, worker, shard, count, encoding, rows, pieces, scale, keys, *rest = fields
    slack, more, at_once, region, offset, is_lent, is_late, ahead, layout, slots, step = rest
    if magic != MAGIC or version != VERSION:
        raise CommError(f"a message of another program or version came ({magic!r}, version {version})")
    if kind not in _KINDS or encoding >= len(_ENCODINGS) or rows >= _CODES[CODES] or keys < SOME_KEYS:
        raise CommError(f"a message of unknown kind {kind} or encoding {encoding}, {rows}, or with {keys} keys, came")
    if count < 0 or more < 0 or keys * 8 > more or pieces < 1 or count % pieces or ahead < 0:
        raise CommError(f"{count} numbers came in {pieces} pieces, with {keys} keys in {more} bytes, {ahead} ahead")
    encodings = _ENCODINGS[encoding], _ENCODINGS[rows]
    sizes = step, count, *encodings, pieces, scale, keys, slack, more
    flags = at_once == 1, region, offset, is_lent == 1, is_late == 1
    return Header(_KINDS[kind], worker, shard, *sizes, *flags, ahead, layout, slots == 1)


@dataclass
class Counts:
    """What a shard has done in a run."""

    updates: int
    duplicates: int
    letters: int
    received_bytes: int
    sent_bytes: int
    staleness: dict[int, int]
    """How many pushes had which age: see ``hpcps/server/delay.py``"""
    dropped: list[int] = field(default_factory=list)
    """Of each worker, how many pushes came too late; empty where no worker can be late"""
    skipped: list[int] = field(default_factory=list)
    """Of each worker, how many steps it has not pushed; likewise"""

    def packed(self) -> Array:
        """As int64: the numbers, how many workers can be late, of each the pushes that were dropped, of each the steps
        that it skipped; then the ages, then how many pushes had each."""
        head = self.updates, self.duplicates, self.letters, self.received_bytes, self.sent_bytes, len(self.dropped)
        late = *self.dropped, *self.skipped
        return np.array([*head, *late, *self.staleness, *self.staleness.values()], np.int64)

    @classmethod
    def unpacked(cls, section: Array) -> Counts:
        """From what :meth:`packed` gave."""
        updates, duplicates, letters, received_bytes, sent_bytes, workers = section[:6].tolist()
        late, behind = section[6 : 6 + 2 * workers], section[6 + 2 * workers :]
        ages, pushes = behind.reshape(2, -1).tolist()
        staleness = dict(zip(ages, pushes, strict=True))
        return cls(updates, duplicates, letters, received_bytes, sent_bytes, staleness, *late.reshape(2, -1).tolist())


def padded(size_bytes: int) -> int:
    """The next multiple of ALIGNMENT_BYTES."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def sections(keys: Sequence[Section], rows: Sequence[Array]) -> list[Section]:
    """What follows the dense section: what tells the keys, and each table's rows, those that there are."""
    return [section for section in (*keys, *rows) if _bytes(section)]


def more_bytes(follow: Sequence[Section]) -> int:
    """Bytes of these sections."""
    return sum(padded(_bytes(section)) for section in follow)


def pack(out: Array, follow: Sequence[Section], copy: Copy = np.copyto) -> None:
    """Put sections one after the other into ``out`` (uint8)."""
    start = 0
    for section in follow:
        end = start
        for part in _parts(section):
            size_bytes = part.nbytes
            whole = part if part.flags.c_contiguous else np.ascontiguousarray(part)
            copy(out[end : end + size_bytes], np.ndarray(size_bytes, np.uint8, whole))
            end += size_bytes
        start += padded(end - start)


def _parts(section: Section) -> tuple[Array, ...]:
    return section if isinstance(section, tuple) else (section,)


def _bytes(section: Section) -> int:
    return sum(part.nbytes for part in _parts(section))


def section(buffer: Array, count: int) -> tuple[Array, Array]:
    """A section of ``count`` int64, and the bytes behind it: views of ``buffer`` (uint8). Raises CommError if there
    are fewer."""
    if count * 8 > len(buffer):
        raise CommError(f"{len(buffer)} bytes came, too few for {count} numbers")
    return buffer[: count * 8].view(np.int64), buffer[padded(count * 8) :]


def unpack(buffer: Array, header: Header, tables: int) -> tuple[list[Array], Array]:
    """The keys of each of so many tables, and the bytes of the rows behind them: views of ``buffer`` (uint8)."""
    if header.keys <= 0:
        return [np.empty(0, np.int64)] * tables, buffer
    keys, behind = section(buffer, header.keys)
    return unpack_keys(keys, tables), behind


def unpack_slots(buffer: Array, keys: Sequence[Array]) -> tuple[list[Array], Array]:
    """The slots of the keys of each table, and the bytes behind them: views. Raises CommError if there are fewer."""
    slots, behind = section(buffer, sum(map(len, keys)))
    return np.split(slots, np.cumsum([len(own) for own in keys])[:-1]), behind


def pack_picked(are_in: Sequence[Array]) -> Array:
    """The section that says which keys of a pull are meant, of each table (k,) bool: uint8."""
    return np.concatenate([np.packbits(own, bitorder="little") for own in are_in])


def unpack_picked(buffer: Array, keys: Sequence[Array]) -> tuple[list[Array], Array]:
    """Those that are meant of the keys of a pull, of each table, and the bytes behind the section that says it. Raises
    CommError if it is too short."""
    found, start = [], 0
    for own in keys:
        stop = start + -(-len(own) // 8)
        if stop > len(buffer):
            raise CommError(f"{len(buffer)} bytes came, too few to tell which keys of a pull are meant")
        found.append(own[np.unpackbits(buffer[start:stop], count=len(own), bitorder="little").view(np.bool_)])
        start = stop
    return found, buffer[padded(start) :]


def take_rows(buffer: Array, counts: Sequence[int], widths: Sequence[int], dtype: np.dtype[Any]) -> list[Array]:
    """Each table's rows (k, W) from the bytes that hold them: views. Raises CommError if there are fewer."""
    rows, start = [], 0
    for count, width in zip(counts, widths, strict=True):
        size_bytes = count * width * dtype.itemsize
        if start + size_bytes > len(buffer):
            raise CommError(f"{len(buffer)} bytes of rows came, fewer than the keys ask for")
        rows.append(np.ndarray((count, width), dtype, buffer, start))
        start += padded(size_bytes)
    return rows


def keys_section(keys: Sequence[Array]) -> tuple[Array, ...]:
    """The section of keys: one array (k,) int64 for each table."""
    return np.array([len(own) for own in keys], np.int64), *keys


def unpack_keys(section: Array, tables: int) -> list[Array]:
    """The keys of each table. Raises CommError if the section's length is not what its counts make."""
    counts = section[:tables].tolist()
    if min(counts, default=0) < 0 or len(section) != tables + sum(counts):
        raise CommError(f"a section of {len(section)} keys came for {tables} tables")
    keys, start = [], tables
    for count in counts:
        keys.append(section[start : start + count])
        start += count
    return keys
