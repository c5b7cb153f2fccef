"""The messages between workers and shards, version 3.

A message is one buffer: a header of 64 bytes, then the payload. All numbers are little-endian.

====== ======= ============ =========================================================================
offset type    name         meaning
====== ======= ============ =========================================================================
0      4 bytes magic        ``HPPS``
4      u16     version      3
6      u16     kind         worker to shard: 1 push and pull, 2 finish, 3 push, 4 pull; shard to worker: 16 parameters
8      u32     worker       number of the worker among the workers
12     u32     shard        number of the shard
16     i64     step         push: the step of the gradient, from 1; pull: the step that parameters must contain;
                            parameters: how many steps they contain
24     i64     count        elements of the payload
32     u16     encoding     of the payload: 0 float32, 1 float64
34     u16     rows         encoding of the rows that follow: as of the payload, or 2 int64 fixed point
36     u32     pieces       push: into how many arrays of one length the payload is cut; else 1
40     f64     scale        fixed point: what the rows were multiplied by (a power of two); else 1
48     i64     keys         elements of the message of keys that follows; 0: none follows; -1: all rows are meant
56     8 bytes             zero
====== ======= ============ =========================================================================

The payload of a push is the worker's gradient; in a reproducible run it is the worker's pieces, one after the other:
the subtrees of grains that it owns whole (``hpcps/comm/order.py``). The shard adds the pieces of all workers in tree
order.

Where the model has tables, a step is a push and a pull. The header of a push is followed by the dense gradient (its
payload), by one message of keys, and for each table that has any by one message of its rows' gradients, k times W
numbers in the header's encoding of rows. A pull is followed by a message of keys unless it asks for all rows. The
answer's payload is the dense parameters; it is followed, for each table with rows asked for, by one message of these
rows.
A message of keys is i64 throughout: the number of keys of each table, in the order of the model's tables, then the
keys, table after table. A key is the number of a row in the shard: row r of a table is on shard r modulo S, as its
row r // S.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpcps import aligned
from hpcps.comm.transport import Array
from hpcps.errors import CommError

MAGIC = b"HPPS"
VERSION = 3
HEADER_BYTES = 64
REQUEST_TAG = 16
ANSWER_TAG = 17
ROWS_TAG = 18
ALL_ROWS = -1

_HEADER = struct.Struct("<4sHHIIqqHHIdq8x")
_FLOAT32: np.dtype[Any] = np.dtype("<f4")
_ENCODINGS = [_FLOAT32, np.dtype("<f8"), np.dtype("<i8")]


class Kind(IntEnum):
    """What a message asks or brings."""

    PUSH_PULL = 1
    FINISH = 2
    PUSH = 3
    PULL = 4
    PARAMETERS = 16


@dataclass(frozen=True)
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


class Message:
    """A buffer for one message with up to ``count`` elements of ``dtype``; ``payload`` is a view of it."""

    def __init__(self, count: int, dtype: DTypeLike) -> None:
        self.buffer: Array = aligned.empty(HEADER_BYTES + count * np.dtype(dtype).itemsize, np.uint8)
        self.payload: Array = self.buffer[HEADER_BYTES:].view(dtype)

    def write(self, header: Header) -> Array:
        """Put the header in front and return the buffer to send: the header and ``header.count`` elements."""
        encodings = _ENCODINGS.index(header.dtype), _ENCODINGS.index(header.rows_dtype)
        place = header.worker, header.shard, header.step, header.count
        fields = (header.kind, *place, *encodings, header.pieces, header.scale, header.keys)
        _HEADER.pack_into(self.buffer.data, 0, MAGIC, VERSION, *fields)
        return self.buffer[: HEADER_BYTES + header.count * header.dtype.itemsize]

    def read(self) -> Header:
        """The header of a message that has arrived. Raises CommError if it is not one of ours."""
        magic, version, kind, worker, shard, *rest = _HEADER.unpack_from(self.buffer.data)
        step, count, encoding, rows, pieces, scale, keys = rest
        if magic != MAGIC or version != VERSION:
            raise CommError(f"a message of another program or version came ({magic!r}, version {version})")
        if kind not in list(Kind) or max(encoding, rows) >= len(_ENCODINGS) or keys < ALL_ROWS:
            raise CommError(
                f"a message of unknown kind {kind} or encoding {encoding}, {rows}, or with {keys} keys, came"
            )
        encodings = _ENCODINGS[encoding], _ENCODINGS[rows]
        header = Header(Kind(kind), worker, shard, step, count, *encodings, pieces, scale, keys)
        if header.count and (header.dtype != self.payload.dtype or not 0 <= header.count <= len(self.payload)):
            raise CommError(f"{header.count} {header.dtype} numbers came for {len(self.payload)} {self.payload.dtype}")
        if pieces < 1 or header.count % pieces:
            raise CommError(f"{header.count} numbers came in {pieces} pieces")
        return header


def pack_keys(keys: Sequence[Array]) -> Array:
    """A message of keys: one array (k,) int64 for each table."""
    return np.concatenate([np.array([len(own) for own in keys], np.int64), *keys])


def unpack_keys(message: Array, tables: int) -> list[Array]:
    """The keys of each table. Raises CommError if the message's length is not what its counts make."""
    counts = message[:tables]
    if (counts < 0).any() or len(message) != tables + counts.sum():
        raise CommError(f"a message of {len(message)} keys came for {tables} tables")
    return np.split(message[tables:], np.cumsum(counts)[:-1])
