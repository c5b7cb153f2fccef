"""Pieces of a step side by side on the threads of a rank.

A step lasts some hundred microseconds, so the pool is a light one: the calling thread works too, and takes pieces
from the same list as the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_Done = tuple[int, Any, BaseException | None]


class Threads:
    """``count`` threads in all, the calling one among them. Not to be used by two threads at a time."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._help, name="hpcps help", daemon=True) for _ in range(count - 1)]
        for thread in self._threads:
            thread.start()

    def each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """``work(item)`` of all items, in their order, each given out as soon as it and those before it are finished.

        Raises the first item's exception; then no further piece is begun, and those begun are not waited for.
        """
        if self.count == 1 or len(items) <= 1:
            return map(work, items)
        return self._share(_Job(work, items))

    def close(self, wait: bool = True) -> None:
        """End the threads. ``wait=False`` after an error: one of them may be in code that does not return."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads if wait else []:
            thread.join()

    def _share(self, job: _Job) -> Iterator[Any]:
        for _ in range(min(len(self._threads), job.size - 1)):
            self._jobs.put(job)
        finished: dict[int, _Done] = {}
        given = 0
        while given < job.size:
            if not job.work_one():  # nothing is left to begin: wait for what others have begun
                done = job.done.get()
                finished[done[0]] = done
            while not job.done.empty():
                done = job.done.get()
                finished[done[0]] = done
            while given in finished:
                _, result, error = finished.pop(given)
                if error is not None:
                    job.abandon()
                    raise error
                given += 1
                yield result

    def _help(self) -> None:
        while (job := self._jobs.get()) is not None:
            while job.work_one():
                pass


class _Job:
    """A list of pieces, handed out one by one. Under the interpreter's lock, ``next`` gives each number once."""

    def __init__(self, work: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.size = len(items)
        self.done: SimpleQueue[_Done] = SimpleQueue()
        self._work = work
        self._items = items
        self._numbers = iter(range(self.size))

    def work_one(self) -> bool:
        """Do the next piece, if there is one."""
        number = next(self._numbers, None)
        if number is None:
            return False
        try:
            self.done.put((number, self._work(self._items[number]), None))
        except BaseException as error:
            self.done.put((number, None, error))
        return True

    def abandon(self) -> None:
        """Begin no more pieces."""
        for _ in self._numbers:
            continue
