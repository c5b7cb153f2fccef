"""Collectives under way that are made of several others."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Protocol


class Pending(Protocol):
    """A collective under way."""

    def done(self) -> bool:
        """Go on as far as that goes without waiting; whether it is finished."""

    def wait(self) -> None:
        """Block until it is finished on this rank."""


class Finished:
    """What needs no waiting."""

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        """There is nothing to wait for."""


class Queue:
    """Sequences of collectives under way, oldest first. A sequence starts its next collective only after the older ones
    have started theirs of the same place: so all ranks start all collectives in one order."""

    def __init__(self) -> None:
        self._under_way: deque[Sequence] = deque()

    def add(self, steps: Iterator[Pending]) -> Sequence:
        """Begin a sequence: ``steps`` starts each collective when the one before is finished, and yields it."""
        sequence = Sequence(self, steps)
        self._under_way.append(sequence)
        self.advance()
        return sequence

    def advance(self) -> None:
        """All sequences as far as that goes without waiting."""
        limit = None
        for sequence in self._under_way:
            sequence.advance(limit)
            limit = sequence.started
        self._drop_finished()

    def wait(self, last: Sequence) -> None:
        """Block until ``last``, and so all older ones, are finished."""
        while not last.is_finished:
            self._under_way[0].run()
            self._drop_finished()

    def _drop_finished(self) -> None:
        while self._under_way and self._under_way[0].is_finished:
            self._under_way.popleft()


class Sequence:
    """Collectives one after another, as one."""

    def __init__(self, queue: Queue, steps: Iterator[Pending]) -> None:
        self._queue = queue
        self._steps = steps
        self._current: Pending | None = None
        self.started = 0
        self.is_finished = False

    def done(self) -> bool:
        self._queue.advance()
        return self.is_finished

    def wait(self) -> None:
        self._queue.wait(self)

    def advance(self, limit: int | None) -> None:
        """Go on without waiting, starting no more than ``limit`` collectives in all (None: any number)."""
        while not self.is_finished and (self._current is None or self._current.done()):
            if limit is not None and self.started >= limit:
                return
            self._next()

    def run(self) -> None:
        """Block until it is finished; only for the oldest."""
        while not self.is_finished:
            if self._current is not None:
                self._current.wait()
            self._next()

    def _next(self) -> None:
        self._current = next(self._steps, None)
        self.started += 1
        self.is_finished = self._current is None
