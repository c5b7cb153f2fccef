"""In which order a shard takes the letters of its workers: noted down, so that an asynchronous run can be repeated to
the last bit."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hpcps.comm.transport import Array
from hpcps.errors import CommError, ConfigError

MAGIC = b"HPORDER1"
_DTYPE = np.dtype("<u2")


class Recorded:
    """Letters are taken as they come, and whose they were is noted down; ``keep`` gets that as the bytes of a file:
    MAGIC, then the numbers of the workers as little-endian u16."""

    def __init__(self, keep: Callable[[bytes], None]) -> None:
        self._taken = array("H")
        self._keep = keep

    def next(self) -> int | None:
        return None

    def taken(self, worker: int) -> None:
        self._taken.append(worker)

    def finished(self) -> None:
        self._keep(MAGIC + np.array(self._taken, _DTYPE).tobytes())


class Replayed:
    """Letters are taken in the order of a record."""

    def __init__(self, workers: Array) -> None:
        self._workers = workers.tolist()
        self._position = 0

    def next(self) -> int | None:
        if self._position == len(self._workers):
            raise CommError("the record of the run that is replayed ends before the run does; was it of fewer steps?")
        worker: int = self._workers[self._position]
        return worker

    def taken(self, worker: int) -> None:
        self._position += 1

    def finished(self) -> None:
        """Nothing is kept."""


def file_name(shard: int) -> str:
    """What the record of a shard is called in a run's folder."""
    return f"order-{shard}.bin"


def load(folder: Path, shard: int, workers: int) -> Replayed:
    """The record of a shard. Raises ConfigError where there is none, or it is of another number of workers."""
    path = folder / file_name(shard)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"server.replay: {path}: no record of a shard's order ({error.strerror})") from error
    found = np.frombuffer(content[len(MAGIC) :][: len(content) // 2 * 2 - len(MAGIC)], _DTYPE)
    is_record = content.startswith(MAGIC) and len(content) % 2 == 0
    if not is_record or len(np.unique(found)) != workers or found.max() != workers - 1:
        raise ConfigError(f"server.replay: {path}: not the record of a shard with {workers} workers")
    return Replayed(found)
