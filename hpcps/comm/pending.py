"""Collectives on their way: each is a generator of steps, and whoever waits for one takes all of them further."""

from __future__ import annotations

from collections.abc import Iterator

from hpcps.comm.transport import Ticket, Transport

Steps = Iterator[tuple[Ticket, ...]]
"""Starts messages and yields the tickets that must be done before it can go on."""


class Pending:
    """A collective whose first messages have been sent.

    Several may be on their way on a transport and its groups, started in one order on all ranks; they may be waited
    for in any order, another one on each rank, because a wait takes all of them further, not its own alone. For this
    the transport lists them until they are finished.
    """

    def __init__(self, transport: Transport, steps: Steps) -> None:
        self._transport = transport
        self._steps = steps
        self._awaited: tuple[Ticket, ...] | None = ()
        self._error: BaseException | None = None
        transport.in_flight.append(self)
        self._step()

    def done(self) -> bool:
        """Whether the collective is finished on this rank. Never blocks: takes all that are on their way as far as they
        come without waiting, so that calls between pieces of other work overlap the two. Raises what went wrong;
        a peer that does not come is noticed by :meth:`wait` alone."""
        for pending in list(self._transport.in_flight):
            pending._advance()
        return not self._advance()

    def wait(self) -> None:
        """Block until the collective is finished on this rank. A second call returns at once. Raises CommTimeout."""
        while mine := self._advance():
            others = [pending for pending in self._transport.in_flight if pending is not self]
            if others:
                self._transport.wait_any([*mine, *(ticket for other in others for ticket in other._advance())])
            else:
                self._transport.wait(*mine)

    def _advance(self) -> list[Ticket]:
        """Go on without blocking; returns the tickets that must be waited for, none if all is finished."""
        while self._awaited is not None:
            if self._error is not None:
                raise self._error
            missing = [ticket for ticket in self._awaited if not ticket.done()]
            if missing:
                return missing
            self._transport.wait(*self._awaited)  # returns at once, or raises what is wrong with a message
            self._step()
        return []

    def _step(self) -> None:
        try:
            self._awaited = next(self._steps, None)
        except BaseException as error:
            self._error = error
            self._transport.in_flight.remove(self)
            raise
        if self._awaited is None:
            self._transport.in_flight.remove(self)


def run(transport: Transport, steps: Steps) -> None:
    """Take a collective from start to end, and others that are on their way as far as they come meanwhile."""
    Pending(transport, steps).wait()
