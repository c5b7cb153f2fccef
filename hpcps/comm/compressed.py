"""The all-reduce in fewer bytes: codes go to the rank that sums their chunk, and codes of the sums to all.

Every number is rounded twice, whatever the rank count, and both times what rounding leaves out is kept and sent later
(Tang, Gan, Awan et al., "1-bit Adam", 2021). Chunks are cut into segments; the messages of some are on the wire while
others are coded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpcps.aligned import LINE_BYTES
from hpcps.comm import codes
from hpcps.comm.codes import Code, Residuals
from hpcps.comm.largest import LargestAllreduce
from hpcps.comm.pending import Pending, Steps
from hpcps.comm.topology import block_bounds
from hpcps.comm.transport import Array, Ticket, Transport

MESSAGE_BYTES = 60 << 10
"""The most of a message: what MPI libraries send over TCP without asking the receiver first (64 KiB with headers)."""
SUM_LAG = 2
"""Segments whose codes are sent ahead of the one that is summed."""
GATHER_LAG = 4
"""Segments whose codes are sent ahead of the one whose sums are written."""


class CompressedAllreduce:
    """All-reduces of arrays of ``count`` float32 numbers, one after another: each begins with what rounding left out of
    those before it, so that the error of a sum of sums stays that of one (see :mod:`hpcps.comm.codes`).

    Cost of one: 2 messages to and from each other rank for each segment, 2 (P - 1) / P coded arrays sent by each rank.
    Chunk c is summed in float32, in rank order, on rank c, from the codes of all ranks, its own too. All ranks decode
    the same codes: they get the same bits. One rank alone rounds nothing.

    Memory: residuals of n + n / P numbers, and the messages of a few segments.
    """

    def __init__(self, transport: Transport, count: int, code: Code, most_bytes: int = MESSAGE_BYTES) -> None:
        self.name = f"{code.name}, error feedback"
        self._transport = transport
        self._code = code
        self._bounds = block_bounds(count, transport.size, code.block)
        self._segment = max(1, most_bytes // code.message_bytes(code.block)) * code.block
        self._turns = -(-self._bounds[1] // self._segment) if transport.size > 1 else 0
        # From the next on, so that not all send to the same one first.
        self._others = [(transport.rank + step) % transport.size for step in range(1, transport.size)]
        self._residual = np.zeros(count, np.float32)
        own = self._bounds[transport.rank + 1] - self._bounds[transport.rank]
        self._sum_residual = np.zeros(own, np.float32)
        self._sum = np.empty(self._segment, np.float32)
        self._slots = [
            _Slot(transport.size, code.message_bytes(self._segment)) for _ in range(min(self._turns, GATHER_LAG + 1))
        ]
        self._tags = (0, 0)

    def residuals(self) -> Residuals:
        """What this rank has left out of its own numbers, and of the sums of its chunk."""
        return {"": (0, self._residual), "sum": (self._bounds[self._transport.rank], self._sum_residual)}

    def start(self, x: Array) -> Pending:
        """Begin the sum of ``x``, (count,) float32, which may not be touched before the wait and then holds the sum.

        Raises NotFiniteError, then or in the wait, on a rank whose numbers, or whose chunk of the sum, are not finite.
        """
        self._tags = (self._transport.collective_tag(), self._transport.collective_tag())
        return Pending(self._transport, self._steps(x))

    def _steps(self, x: Array) -> Steps:
        for turn in range(self._turns + GATHER_LAG):
            if turn < self._turns:
                self._send_codes(x, turn)
            if 0 <= turn - SUM_LAG < self._turns:
                yield tuple(self._slot(turn - SUM_LAG).codes_come)
                self._send_sums(turn - SUM_LAG)
            if 0 <= turn - GATHER_LAG < self._turns:
                slot = self._slot(turn - GATHER_LAG)
                yield (*slot.sums_come, *slot.sent)
                self._write_sums(x, turn - GATHER_LAG)

    def _send_codes(self, x: Array, turn: int) -> None:
        """Code this segment of every chunk, and send each to the rank that sums it."""
        slot, rank = self._slot(turn), self._transport.rank
        mine = self._piece(rank, turn)
        slot.codes_come, slot.sums_come, slot.sent = [], [], []
        for other in self._others:
            theirs = self._piece(other, turn)
            slot.codes_come += self._receive(slot.codes[other], mine, other, self._tags[0])
            slot.sums_come += self._receive(slot.sums[other], theirs, other, self._tags[1])
            message = self._message(slot.outgoing[other], theirs)
            self._code.encode(message, self._residual[theirs], x[theirs])
            slot.sent += self._send(message, other, self._tags[0])
        self._code.encode(self._message(slot.codes[rank], mine), self._residual[mine], x[mine])

    def _send_sums(self, turn: int) -> None:
        """Add up what all ranks sent of this rank's chunk, and send the sum's codes to all."""
        slot, rank = self._slot(turn), self._transport.rank
        mine = self._piece(rank, turn)
        total = self._sum[: mine.stop - mine.start]
        self._code.decode(total, self._message(slot.codes[0], mine))
        for source in range(1, self._transport.size):
            self._code.decode_add(total, self._message(slot.codes[source], mine))
        message, start = self._message(slot.sums[rank], mine), self._bounds[rank]
        self._code.encode(message, self._sum_residual[mine.start - start : mine.stop - start], total)
        for other in self._others:
            slot.sent += self._send(message, other, self._tags[1])

    def _write_sums(self, x: Array, turn: int) -> None:
        slot = self._slot(turn)
        for chunk in range(self._transport.size):
            piece = self._piece(chunk, turn)
            self._code.decode(x[piece], self._message(slot.sums[chunk], piece))

    def _slot(self, turn: int) -> _Slot:
        return self._slots[turn % len(self._slots)]

    def _piece(self, chunk: int, turn: int) -> slice:
        """Segment ``turn`` of a chunk, empty where the chunk is shorter."""
        low, end = self._bounds[chunk] + turn * self._segment, self._bounds[chunk + 1]
        return slice(min(low, end), min(low + self._segment, end))

    def _message(self, room: Array, piece: slice) -> Array:
        return room[: self._code.message_bytes(piece.stop - piece.start)]

    def _receive(self, room: Array, piece: slice, source: int, tag: int) -> list[Ticket]:
        """The codes of ``piece``; an empty one is not sent."""
        message = self._message(room, piece)
        return [self._transport.irecv(message, source, tag)] if len(message) else []

    def _send(self, message: Array, to: int, tag: int) -> list[Ticket]:
        return [self._transport.isend(message, to, tag)] if len(message) else []


class _Slot:
    """The messages of a segment that is under way; row r is for, or from, rank r."""

    def __init__(self, ranks: int, message_bytes: int) -> None:
        rows = (ranks, -(-message_bytes // LINE_BYTES) * LINE_BYTES)
        self.outgoing, self.codes, self.sums = np.empty((3, *rows), np.uint8)
        self.codes_come: list[Ticket] = []
        self.sums_come: list[Ticket] = []
        self.sent: list[Ticket] = []


def make(
    kind: str,
    transport: Transport,
    count: int,
    dtype: DTypeLike,
    kernels: Any,
    block: int = 256,
    fraction: float = 0.01,
) -> CompressedAllreduce | LargestAllreduce:
    """All-reduces of arrays of ``count`` numbers as bf16, int8 (in blocks of ``block``, float32 alone) or topk (the
    largest ``fraction``, float32 or float64). ``kernels`` is the table of ``hpcps_kernels``."""
    if kind == "topk":
        return LargestAllreduce(transport, count, dtype, fraction, kernels)
    return CompressedAllreduce(transport, count, codes.make(kind, block, fraction, dtype, kernels))
