"""The loop of a server rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hpcps.comm.transport import Array, Ticket, Transport
from hpcps.errors import CommError
from hpcps.rows import Rows
from hpcps.server.messages import ALL_ROWS, ANSWER_TAG, REQUEST_TAG, ROWS_TAG, Header, Kind, Message, unpack_keys
from hpcps.server.store import Shard
from hpcps.sums import Decoder, Summed

Wanted = Mapping[str, Array] | None
"""The rows of each table that a worker asked for; None: all."""


class Server:
    """Serves one shard to ``workers`` (their ranks, in worker order) until each of them has finished.

    ``pieces``: of how many arrays each worker's gradient is.
    """

    def __init__(
        self,
        transport: Transport,
        shard: Shard,
        number: int,
        workers: list[int],
        decoder: Decoder,
        pieces: Sequence[int],
    ) -> None:
        count = len(shard.params)
        self._transport = transport
        self._shard = shard
        self._number = number
        self._workers = workers
        self._rows_dtype = decoder.rows_dtype
        self._pushes = [Message(own * count, decoder.dtype) for own in pieces]
        self._pulls = [Message(0, decoder.dtype) for _ in workers]
        self._answers = [Message(count, shard.params.dtype) for _ in workers]
        self._expected: dict[int, tuple[Message, Ticket]] = {}
        self._waiting: dict[int, tuple[int, Wanted]] = {}
        self._sent: dict[int, list[Ticket]] = {worker: [] for worker in range(len(workers))}
        self._kept: dict[int, list[Array]] = {}

    def run(self) -> None:
        """Block until every worker has said that it is finished. Raises CommTimeout, PeerLost, CommError."""
        for worker in range(len(self._workers)):
            self._listen(worker, self._pushes[worker])
        while self._expected:
            workers = list(self._expected)
            worker = workers[self._transport.wait_any([self._expected[w][1] for w in workers])]
            message, _ = self._expected.pop(worker)
            self._handle(worker, message)
        for sent in self._sent.values():
            self._transport.wait(*sent)

    def _listen(self, worker: int, message: Message) -> None:
        ticket = self._transport.irecv(message.buffer, self._workers[worker], REQUEST_TAG)
        self._expected[worker] = message, ticket

    def _handle(self, worker: int, message: Message) -> None:
        header = message.read()
        if header.worker != worker or header.shard != self._number:
            raise CommError(f"shard {self._number} got worker {header.worker}'s message for shard {header.shard}")
        if header.kind is Kind.FINISH:
            return
        if header.kind in (Kind.PUSH_PULL, Kind.PULL):
            self._waiting[worker] = header.step, self._keys(worker, header)
        if header.kind is Kind.PUSH:
            self._listen(worker, self._pulls[worker])
        if header.kind is not Kind.PULL:
            dense = message.payload[: header.count].reshape(header.pieces, -1)
            gradient = Summed(dense, header.scale, self._rows(worker, header))
            self._shard.push(worker, header.step, gradient)
        for ready in [w for w, (step, _) in self._waiting.items() if step <= self._shard.clock]:
            self._answer(ready, self._waiting.pop(ready)[1])

    def _keys(self, worker: int, header: Header) -> Wanted:
        """The message of keys that follows a header."""
        if header.keys == ALL_ROWS:
            return None
        names = list(self._shard.tables)
        packed = np.empty(header.keys, np.int64)
        if header.keys:
            self._receive(worker, packed)
        elif not names:
            return {}
        return dict(zip(names, unpack_keys(packed, len(names)), strict=True))

    def _rows(self, worker: int, header: Header) -> dict[str, Rows]:
        """The rows' gradients that follow a push."""
        if header.kind is Kind.PUSH_PULL:
            return {}
        if header.rows_dtype != self._rows_dtype:
            raise CommError(f"worker {worker} pushed rows of {header.rows_dtype}, not {self._rows_dtype}")
        rows = {}
        for name, keys in (self._keys(worker, header) or {}).items():
            values = np.empty((len(keys), self._shard.tables[name].shape[1]), self._rows_dtype)
            if values.size:
                self._receive(worker, values.reshape(-1))
            rows[name] = Rows(keys, values)
        return rows

    def _receive(self, worker: int, buffer: Array) -> None:
        self._transport.wait(self._transport.irecv(buffer, self._workers[worker], ROWS_TAG))

    def _answer(self, worker: int, wanted: Wanted) -> None:
        """Send fresh parameters to a worker and listen for its next step."""
        rank, answer, params = self._workers[worker], self._answers[worker], self._shard.params
        self._transport.wait(*self._sent[worker])
        self._listen(worker, self._pushes[worker])
        answer.payload[:] = params
        header = Header(Kind.PARAMETERS, worker, self._number, self._shard.clock, len(params), params.dtype)
        sent = [self._transport.isend(answer.write(header), rank, ANSWER_TAG)]
        rows = [values.reshape(-1).copy() if wanted is None else values.reshape(-1) for values in self._pull(wanted)]
        sent += [self._transport.isend(values, rank, ROWS_TAG) for values in rows if values.size]
        self._sent[worker], self._kept[worker] = sent, rows

    def _pull(self, wanted: Wanted) -> list[Array]:
        return list(self._shard.pull(wanted).values()) if self._shard.tables else []
