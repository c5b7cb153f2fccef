"""How ranks share small facts while a job is set up, and how an error on one rank becomes the same error on all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from hpcps import errors
from hpcps.errors import HpcpsError

T = TypeVar("T")
Array = npt.NDArray[Any]


class Together(Protocol):
    """The ranks of a job. Both operations are collectives: every rank calls them, in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def once(self, make: Callable[[], Array]) -> Array:
        """Run ``make`` on rank 0, give its 1-D array to every rank; an HpcpsError in it is raised on all."""
        ...

    def gather(self, values: Array) -> Array:
        """Give every rank the 1-D arrays of all ranks (any lengths, one dtype), joined in rank order."""
        ...


class Alone:
    """``Together`` for a single process."""

    rank = 0
    size = 1

    def once(self, make: Callable[[], Array]) -> Array:
        return make()

    def gather(self, values: Array) -> Array:
        return values


def agree(together: Together, work: Callable[[], T]) -> T:
    """Run ``work`` on every rank and give its result; where it failed anywhere, every rank raises.

    All ranks raise the message of the lowest failing rank. Blocks until every rank has finished its work.
    """
    caught: HpcpsError | None = None
    results: list[T] = []
    try:
        results.append(work())
    except HpcpsError as error:
        caught = error
    told = together.gather(np.frombuffer(_encode(caught), np.uint8)).tobytes()
    if told:
        shared = _decode(told)
        shared.known_to_all = True
        results.clear()  # or the error's traceback would keep it
        raise shared from caught
    return results[0]


def _encode(error: HpcpsError | None) -> bytes:
    if error is None:
        return b""
    message = str(error).replace("\0", "\\0")
    return f"{type(error).__name__}\n{message}\0".encode("utf-8", "backslashreplace")


def _decode(told: bytes) -> HpcpsError:
    name, message = told.split(b"\0", 1)[0].decode().split("\n", 1)
    kind: type[HpcpsError] = getattr(errors, name)
    return kind(message)
