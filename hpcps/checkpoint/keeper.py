"""Writes one holder's state in the background, while training goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from hpcps.checkpoint.folder import CheckpointFolder
from hpcps.checkpoint.part import write_failure, write_part
from hpcps.snapshot import Pieces

MEMORY_PART = 0.5
"""Of the memory that is free, what the copies of a node's ranks may take."""


class Keeper:
    """Of the holder ``name``: ``worker-00002``, ``shard-00001``. One checkpoint at a time. ``neighbours``: how many
    ranks share the memory."""

    def __init__(self, folder: CheckpointFolder, name: str, neighbours: int = 1) -> None:
        self.name = name
        self.problem: OSError | None = None
        """Why the last one could not be written"""
        self._folder = folder
        self._memory_part = MEMORY_PART / neighbours
        self._thread: threading.Thread | None = None
        self._is_given_up = threading.Event()

    @property
    def is_busy(self) -> bool:
        """Whether one is being written."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, step: int, pieces: Pieces, then: Callable[[], None] | None = None) -> None:
        """Copy the pieces, if there are any, and begin to write them; then do what else is to be done. If there is no
        room for a copy they are written before this returns. Waits for the checkpoint before."""
        self.wait()
        self.problem = None
        if pieces.nbytes > self._memory_part * free_memory():
            self._write(step, pieces, then)
            return
        copies = pieces.copy()
        self._thread = threading.Thread(
            target=self._write, args=(step, copies, then), name=f"hpcps checkpoint {self.name}", daemon=True
        )
        self._thread.start()

    def give_up(self) -> None:
        """Wait no more for others' files; block until nothing is written any more."""
        self._is_given_up.set()
        self.wait()

    @property
    def is_given_up(self) -> bool:
        return self._is_given_up.is_set()

    def wait(self) -> None:
        """Block until the checkpoint has been written, or could not be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, step: int, pieces: Pieces, then: Callable[[], None] | None) -> None:
        folder = self._folder.aside(step)
        try:
            if pieces.nbytes:
                write_part(folder, self.name, pieces)
        except OSError as error:
            self.problem = error
            with contextlib.suppress(OSError):
                write_failure(folder, self.name, error.strerror or str(error))
        if then is not None:
            try:
                then()
            except OSError as error:
                self.problem = self.problem or error


def free_memory() -> int:
    """Bytes of memory that this machine has free, as Linux says; where it does not, as many as wanted."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 1 << 62
