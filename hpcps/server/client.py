"""The worker's side of the parameter server: push a gradient, pull parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from hpcps.comm.transport import Array, Ticket, Transport
from hpcps.errors import CommError
from hpcps.params import Params
from hpcps.rows import Rows
from hpcps.server.messages import ALL_ROWS, ANSWER_TAG, REQUEST_TAG, ROWS_TAG, Header, Kind, Message, pack_keys
from hpcps.server.sharding import keys_of_shard, rows_of_shard
from hpcps.server.store import Shard
from hpcps.sums import Decoder, Summed


class Client(Protocol):
    """A worker's connection to all shards. Not thread-safe; a push, then a pull, then the next push."""

    def push(self, step: int, gradient: Summed) -> None:
        """Start to push the gradient of ``step`` (from 1). Does not block. It may not be changed before the pull."""

    def pull(self, step: int, keys: Mapping[str, Array] | None) -> None:
        """Make this worker's parameters contain ``step``: dense ones, and of each table the rows ``keys`` (distinct);
        all rows if None. Blocks. Raises CommTimeout, PeerLost, CommError."""

    def finish(self) -> None:
        """Tell all shards that this worker has no more to push. Blocks until they have been told."""


class RemoteClient:
    """Shards on ranks of their own. ``params``: the worker's copy, written when an answer arrives. ``pieces``: of how
    many arrays this worker's gradient is."""

    def __init__(
        self,
        transport: Transport,
        params: Params,
        shards: list[slice],
        servers: list[int],
        worker: int,
        decoder: Decoder,
        pieces: int = 1,
    ) -> None:
        self._transport = transport
        self._dense = params.dense.flat
        self._tables = {name: params.table(name) for name in params.tables}
        self._shards = shards
        self._servers = servers
        self._worker = worker
        counts = [shard.stop - shard.start for shard in shards]
        self._pieces = pieces
        self._rows_dtype = decoder.rows_dtype
        self._pushes = [Message(pieces * count, decoder.dtype) for count in counts]
        self._pulls = [Message(0, decoder.dtype) for _ in counts]
        self._answers = [Message(count, self._dense.dtype) for count in counts]
        self._received: list[Ticket] = []
        self._sent: list[Ticket] = []
        self._kept: list[Array] = []

    def push(self, step: int, gradient: Summed) -> None:
        for number in range(len(self._servers)):
            push = self._pushes[number]
            push.payload.reshape(self._pieces, -1)[:] = gradient.dense[..., self._shards[number]]
            self._listen(number)
            rows = self._split(gradient.rows, number)
            keys = pack_keys([own.keys for own in rows]) if rows else None
            kind = Kind.PUSH if self._tables else Kind.PUSH_PULL
            self._send(number, push, kind, step, keys, len(push.payload), self._pieces, gradient.scale)
            for own in rows:
                self._send_rows(number, own.values)

    def pull(self, step: int, keys: Mapping[str, Array] | None) -> None:
        wanted = [self._wanted(keys, number) for number in range(len(self._servers))]
        if self._tables:
            for number, rows in enumerate(wanted):
                asked = None if keys is None else pack_keys([own // len(self._servers) for own in rows])
                self._send(number, self._pulls[number], Kind.PULL, step, asked, everything=keys is None)
        self._take_up(step, wanted)

    def finish(self) -> None:
        for number in range(len(self._servers)):
            self._send(number, self._pushes[number], Kind.FINISH)
        self._wait_for_sent()

    def _listen(self, number: int) -> None:
        buffer = self._answers[number].buffer
        self._received.append(self._transport.irecv(buffer, self._servers[number], ANSWER_TAG))

    def _send(
        self,
        number: int,
        message: Message,
        kind: Kind,
        step: int = 0,
        keys: Array | None = None,
        count: int = 0,
        pieces: int = 1,
        scale: float = 1.0,
        everything: bool = False,
    ) -> None:
        """Send a header with its payload, and the keys."""
        followed_by = ALL_ROWS if everything else 0 if keys is None else len(keys)
        encodings = message.payload.dtype, self._rows_dtype
        header = Header(kind, self._worker, number, step, count, *encodings, pieces, scale, followed_by)
        self._sent.append(self._transport.isend(message.write(header), self._servers[number], REQUEST_TAG))
        if keys is not None:
            self._send_rows(number, keys)

    def _send_rows(self, number: int, values: Array) -> None:
        if values.size:
            self._kept.append(values)
            self._sent.append(self._transport.isend(values.reshape(-1), self._servers[number], ROWS_TAG))

    def _split(self, rows: Mapping[str, Rows], number: int) -> list[Rows]:
        """The rows of each table that a shard has, by their numbers there."""
        shards = len(self._servers)
        found = []
        for keys, values in rows.values():
            own = keys_of_shard(keys, number, shards)
            found.append(Rows(keys[own] // shards, np.ascontiguousarray(values[own])))
        return found

    def _wanted(self, keys: Mapping[str, Array] | None, number: int) -> list[Array]:
        """The rows of each table that are to come from a shard."""
        shards = len(self._servers)
        if keys is None:
            return [np.arange(len(table))[rows_of_shard(number, shards)] for table in self._tables.values()]
        return [keys[name][keys_of_shard(keys[name], number, shards)] for name in self._tables]

    def _take_up(self, step: int, wanted: list[list[Array]]) -> None:
        """Copy each shard's answer into the parameters as it comes."""
        waiting = dict(enumerate(self._received))
        while waiting:
            number = list(waiting)[self._transport.wait_any(list(waiting.values()))]
            del waiting[number]
            header = self._answers[number].read()
            if header.kind is not Kind.PARAMETERS or header.step != step:
                raise CommError(f"shard {number} answered {header.kind.name} of step {header.step} at step {step}")
            self._dense[self._shards[number]] = self._answers[number].payload
            self._receive_rows(number, wanted[number])
        self._received = []
        self._wait_for_sent()

    def _receive_rows(self, number: int, wanted: list[Array]) -> None:
        for table, keys in zip(self._tables.values(), wanted, strict=True):
            values = np.empty((len(keys), table.shape[1]), table.dtype)
            if values.size:
                rank = self._servers[number]
                self._transport.wait(self._transport.irecv(values.reshape(-1), rank, ROWS_TAG))
                table[keys] = values

    def _wait_for_sent(self) -> None:
        self._transport.wait(*self._sent)
        self._sent, self._kept = [], []


class DirectClient:
    """All shards in the worker's own process, on the worker's own parameters: one process with a server strategy.

    The first shard holds the tables whole.
    """

    def __init__(self, shards: list[Shard], slices: list[slice]) -> None:
        self._shards = shards
        self._slices = slices

    def push(self, step: int, gradient: Summed) -> None:
        for shard, part in zip(self._shards, self._slices, strict=True):
            rows = gradient.rows if shard.tables else {}
            shard.push(0, step, Summed(gradient.dense[..., part], gradient.scale, rows))

    def pull(self, step: int, keys: Mapping[str, Array] | None) -> None:
        """The parameters are fresh already."""

    def finish(self) -> None:
        """Nobody to tell."""
