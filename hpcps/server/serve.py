"""The loop of a server rank."""

from __future__ import annotations

from hpcps.comm.transport import Array, Ticket, Transport
from hpcps.errors import CommError
from hpcps.server.messages import ANSWER_TAG, REQUEST_TAG, Header, Kind, Message
from hpcps.server.store import Shard
from hpcps.sums import Decoder


class Server:
    """Serves one shard to ``workers`` (their ranks, in worker order) until each of them has finished."""

    def __init__(self, transport: Transport, shard: Shard, number: int, workers: list[int], decoder: Decoder) -> None:
        count = len(shard.params)
        self._transport = transport
        self._shard = shard
        self._number = number
        self._workers = workers
        self._requests = [Message(transport, count, decoder.wire_dtype) for _ in workers]
        self._answers = [Message(transport, count, shard.params.dtype) for _ in workers]
        self._tickets: dict[int, Ticket] = {}
        self._sent: list[Ticket] = []

    def run(self) -> None:
        """Block until every worker has said that it is finished. Raises CommTimeout, PeerLost, CommError."""
        for worker in range(len(self._workers)):
            self._listen(worker)
        while self._tickets:
            worker = list(self._tickets)[self._transport.wait_any(list(self._tickets.values()))]
            del self._tickets[worker]
            self._handle(worker, self._requests[worker])
        self._transport.wait(*self._sent)

    def _listen(self, worker: int) -> None:
        buffer: Array = self._requests[worker].buffer
        self._tickets[worker] = self._transport.irecv(buffer, self._workers[worker], REQUEST_TAG)

    def _handle(self, worker: int, request: Message) -> None:
        header = request.read()
        if header.worker != worker or header.shard != self._number:
            raise CommError(f"shard {self._number} got worker {header.worker}'s message for shard {header.shard}")
        if header.kind is Kind.FINISH:
            return
        if self._shard.push(worker, header.step, request.payload[: header.count], header.scale):
            self._answer_all()

    def _answer_all(self) -> None:
        """Send the fresh parameters to every worker and listen for the next step."""
        self._transport.wait(*self._sent)
        params = self._shard.params
        self._sent = []
        for worker, rank in enumerate(self._workers):
            self._listen(worker)
            answer = self._answers[worker]
            answer.payload[:] = params
            header = Header(Kind.PARAMETERS, worker, self._number, self._shard.clock, len(params), params.dtype)
            self._sent.append(self._transport.isend(answer.write(header), rank, ANSWER_TAG))
