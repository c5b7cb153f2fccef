"""In which order a shard takes the letters of its workers: noted down, so that an asynchronous run can be repeated to
the last bit."""

from __future__ import annotations

import io
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hpcps.comm.transport import Array
from hpcps.errors import CommError, ConfigError


class Recorded:
    """Letters are taken as they come, and whose they were is noted down; ``keep`` gets that as the bytes of a .npy
    file."""

    def __init__(self, keep: Callable[[bytes], None]) -> None:
        self._taken = array("H")
        self._keep = keep

    def next(self) -> int | None:
        return None

    def taken(self, worker: int) -> None:
        self._taken.append(worker)

    def finished(self) -> None:
        file = io.BytesIO()
        np.save(file, np.array(self._taken, "<u2"), allow_pickle=False)
        self._keep(file.getvalue())


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
    return f"order-{shard}.npy"


def load(folder: Path, shard: int, workers: int) -> Replayed:
    """The record of a shard. Raises ConfigError where there is none, or it is of another number of workers."""
    path = folder / file_name(shard)
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"server.replay: {path}: no record of a shard's order ({error})") from error
    if found.ndim != 1 or found.dtype != np.dtype("<u2") or (found.size and found.max() >= workers):
        raise ConfigError(f"server.replay: {path}: not the record of a shard with {workers} workers")
    finishes = np.bincount(found, minlength=workers)
    if (finishes == 0).any():
        raise ConfigError(f"server.replay: {path}: not the record of a shard with {workers} workers")
    return Replayed(found)
