"""The worker's side of the parameter server: push a gradient, pull parameters, with a ticket to wait for."""

from __future__ import annotations

from typing import Protocol

from hpcps.comm.transport import Array, Ticket, Transport
from hpcps.errors import CommError
from hpcps.server.messages import ANSWER_TAG, REQUEST_TAG, Header, Kind, Message
from hpcps.server.store import Shard
from hpcps.sums import Decoder


class Answer(Protocol):
    """Parameters on their way."""

    def wait(self) -> None:
        """Block until the worker's parameters are fresh. Raises CommTimeout, PeerLost, CommError."""


class Client(Protocol):
    """A worker's connection to all shards. Not thread-safe: one push at a time."""

    def push_pull(self, step: int, gradient: Array, scale: float) -> Answer:
        """Start to push a wire array of (n,) for ``step`` (from 1) and to pull the parameters that contain it.

        Does not block. ``gradient`` may not be changed before the answer has been waited for.
        """

    def finish(self) -> None:
        """Tell all shards that this worker has no more to push. Blocks until they have been told."""


class RemoteClient:
    """Shards on ranks of their own. ``params``: the worker's copy, (n,), written when an answer arrives."""

    def __init__(
        self,
        transport: Transport,
        params: Array,
        shards: list[slice],
        servers: list[int],
        worker: int,
        decoder: Decoder,
    ) -> None:
        self._transport = transport
        self._params = params
        self._shards = shards
        self._servers = servers
        self._worker = worker
        counts = [shard.stop - shard.start for shard in shards]
        self._pushes = [Message(transport, count, decoder.wire_dtype) for count in counts]
        self._answers = [Message(transport, count, params.dtype) for count in counts]

    def push_pull(self, step: int, gradient: Array, scale: float) -> Answer:
        received, sent = [], []
        for number, rank in enumerate(self._servers):
            push = self._pushes[number]
            push.payload[:] = gradient[self._shards[number]]
            header = Header(Kind.PUSH_PULL, self._worker, number, step, len(push.payload), push.payload.dtype, scale)
            received.append(self._transport.irecv(self._answers[number].buffer, rank, ANSWER_TAG))
            sent.append(self._transport.isend(push.write(header), rank, REQUEST_TAG))
        return _RemoteAnswer(self, step, received, sent)

    def finish(self) -> None:
        sent = []
        for number, rank in enumerate(self._servers):
            header = Header(Kind.FINISH, self._worker, number, dtype=self._pushes[number].payload.dtype)
            sent.append(self._transport.isend(self._pushes[number].write(header), rank, REQUEST_TAG))
        self._transport.wait(*sent)

    def take_up(self, step: int, received: list[Ticket], sent: list[Ticket]) -> None:
        """Copy each shard's answer into the parameters as it comes."""
        waiting = dict(enumerate(received))
        while waiting:
            number = list(waiting)[self._transport.wait_any(list(waiting.values()))]
            del waiting[number]
            header = self._answers[number].read()
            if header.kind is not Kind.PARAMETERS or header.step != step:
                raise CommError(f"shard {number} answered {header.kind.name} of step {header.step} at step {step}")
            self._params[self._shards[number]] = self._answers[number].payload
        self._transport.wait(*sent)


class _RemoteAnswer:
    def __init__(self, client: RemoteClient, step: int, received: list[Ticket], sent: list[Ticket]) -> None:
        self._client = client
        self._step = step
        self._received = received
        self._sent = sent

    def wait(self) -> None:
        self._client.take_up(self._step, self._received, self._sent)


class DirectClient:
    """All shards in the worker's own process, on the worker's own parameters: one process with a server strategy."""

    def __init__(self, shards: list[Shard], slices: list[slice]) -> None:
        self._shards = shards
        self._slices = slices

    def push_pull(self, step: int, gradient: Array, scale: float) -> Answer:
        for shard, part in zip(self._shards, self._slices, strict=True):
            shard.push(0, step, gradient[part], scale)
        return _Done()

    def finish(self) -> None:
        """Nobody to tell."""


class _Done:
    def wait(self) -> None:
        """The parameters are fresh already."""
