"""The messages between workers and shards, version 1.

A message is one buffer: a header of 64 bytes, then the payload. All numbers are little-endian.

====== ======= ============ =========================================================================
offset type    name         meaning
====== ======= ============ =========================================================================
0      4 bytes magic        ``HPPS``
4      u16     version      1
6      u16     kind         1 push and pull, 2 finish (worker to shard); 16 parameters (shard to worker)
8      u32     worker       number of the worker among the workers
12     u32     shard        number of the shard
16     i64     step         push: the step of the gradient, from 1; parameters: how many steps they contain
24     i64     count        elements of the payload
32     u16     encoding     0 float32, 1 float64, 2 int64 fixed point
34     6 bytes             zero
40     f64     scale        fixed point: what the numbers were multiplied by (a power of two); else 1
48     16 bytes            zero
====== ======= ============ =========================================================================
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpcps.comm.transport import Array, Transport
from hpcps.errors import CommError

MAGIC = b"HPPS"
VERSION = 1
HEADER_BYTES = 64
REQUEST_TAG = 16
ANSWER_TAG = 17

_HEADER = struct.Struct("<4sHHIIqqH6xd16x")
_FLOAT32: np.dtype[Any] = np.dtype("<f4")
_ENCODINGS = [_FLOAT32, np.dtype("<f8"), np.dtype("<i8")]


class Kind(IntEnum):
    """What a message asks or brings."""

    PUSH_PULL = 1
    FINISH = 2
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
    scale: float = 1.0


class Message:
    """A buffer for one message with up to ``count`` elements of ``dtype``; ``payload`` is a view of it."""

    def __init__(self, transport: Transport, count: int, dtype: DTypeLike) -> None:
        self.buffer: Array = transport.empty(HEADER_BYTES + count * np.dtype(dtype).itemsize, np.uint8)
        self.payload: Array = self.buffer[HEADER_BYTES:].view(dtype)

    def write(self, header: Header) -> Array:
        """Put the header in front and return the buffer to send: the header and ``header.count`` elements."""
        encoding = _ENCODINGS.index(header.dtype)
        fields = (header.kind, header.worker, header.shard, header.step, header.count, encoding, header.scale)
        _HEADER.pack_into(self.buffer.data, 0, MAGIC, VERSION, *fields)
        return self.buffer[: HEADER_BYTES + header.count * header.dtype.itemsize]

    def read(self) -> Header:
        """The header of a message that has arrived. Raises CommError if it is not one of ours."""
        magic, version, kind, worker, shard, step, count, encoding, scale = _HEADER.unpack_from(self.buffer.data)
        if magic != MAGIC or version != VERSION:
            raise CommError(f"a message of another program or version came ({magic!r}, version {version})")
        if kind not in list(Kind) or encoding >= len(_ENCODINGS):
            raise CommError(f"a message of unknown kind {kind} or encoding {encoding} came")
        header = Header(Kind(kind), worker, shard, step, count, _ENCODINGS[encoding], scale)
        if header.count and (header.dtype != self.payload.dtype or not 0 <= header.count <= len(self.payload)):
            raise CommError(f"{header.count} {header.dtype} numbers came for {len(self.payload)} {self.payload.dtype}")
        return header
