"""A collective on its way, which can be asked whether it is finished."""

from __future__ import annotations

from collections.abc import Iterator

from hpcps.comm.transport import Ticket, Transport


class Pending:
    """A collective whose first messages have been sent. ``steps`` starts messages and yields the tickets to be waited
    for, as the generators of :mod:`hpcps.comm.ring` do."""

    def __init__(self, transport: Transport, steps: Iterator[tuple[Ticket, ...]]) -> None:
        self._transport = transport
        self._steps = steps
        self._tickets = next(steps, None)

    def done(self) -> bool:
        """Whether it is finished on this rank. Never blocks, but does what can be done by now: arithmetic, and the
        next messages. Raises what :meth:`wait` raises, timeouts excepted."""
        while self._tickets is not None and all(ticket.done() for ticket in self._tickets):
            self._advance(self._tickets)
        return self._tickets is None

    def wait(self) -> None:
        """Block until it is finished on this rank. Raises CommTimeout, PeerLost, and what the arithmetic raises."""
        while self._tickets is not None:
            self._advance(self._tickets)

    def _advance(self, tickets: tuple[Ticket, ...]) -> None:
        self._transport.wait(*tickets)
        self._tickets = next(self._steps, None)
