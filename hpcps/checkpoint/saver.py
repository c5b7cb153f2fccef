"""The workers' part in a checkpoint: they agree that there is to be one, and the first makes it whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from hpcps.checkpoint.folder import CheckpointFolder, name_of
from hpcps.checkpoint.keeper import Keeper
from hpcps.checkpoint.manifest import Facts, FileAbout, Manifest, encode
from hpcps.checkpoint.when import When
from hpcps.comm import ring
from hpcps.comm.transport import Array, Transport
from hpcps.snapshot import Pieces, Position

BUSY_S = 0.02
"""Between two looks at whether the checkpoint before has been written."""


def shard_name(number: int) -> str:
    """Of the holder of a shard's state."""
    return f"shard-{number:05d}"


class Saver:
    """Checkpoints of a run: this worker's ``pieces`` and what ``keep`` has ``shards`` keep. The first worker writes
    the manifest, with ``config`` and ``facts``, and hands what goes wrong to ``warn``; training goes on then. ``lost``:
    which shards' own ranks are known to be lost, while the run goes on."""

    def __init__(
        self,
        workers: Transport,
        folder: CheckpointFolder,
        when: When,
        pieces: Callable[[], Pieces],
        keep: Callable[[], None],
        shards: int,
        config: dict[str, Any],
        facts: Facts,
        warn: Callable[[str], None],
        timeout_s: float,
        saved: int = -1,
        neighbours: int = 1,
        lost: Callable[[], Iterable[int]] = tuple,
    ) -> None:
        self.when = when
        self.written = 0
        """How many checkpoints there have been"""
        self.problems: list[str] = []
        """Why others could not be written"""
        self.saved = saved
        """After which step the newest good one was made; -1: there is none"""
        self._workers = workers
        self._folder = folder
        self._pieces = pieces
        self._keep = keep
        self._shards = shards
        self._about = config, facts
        self._warn = warn
        self._timeout_s = timeout_s
        self._keeper = Keeper(folder, f"worker-{workers.rank:05d}", neighbours)
        self._begun = -1
        self._lost, self._lost_before = lost, set(lost())
        self._given_up: set[str] = set()
        """Of the checkpoint that is being written, the shards that were lost meanwhile"""

    def is_due(self, step: int) -> bool:
        return self.when.is_due(step)

    def look(self, step: int) -> None:
        self.when.look(step)
        if self._begun >= 0:
            self._look_for_lost()
            if not self._keeper.is_busy:
                self._note()

    def save(self, position: Position) -> bool:
        """Begin to write a checkpoint; the workers wait until the one before has been written. A collective. Returns
        whether training is to stop."""
        while self._any(self._keeper.is_busy):
            self._look_for_lost()
            time.sleep(BUSY_S)
        self._note()
        step, pieces = position.steps, self._pieces()
        problem = self._begin(step) if self._workers.rank == 0 else None
        told = self._gather(2 * (problem is not None) + (pieces.nbytes > 0))
        if told[0] < 2:
            holders = [f"worker-{rank:05d}" for rank in np.flatnonzero(told % 2)]
            holders += [shard_name(number) for number in range(self._shards)]
            self._start(position, pieces, holders)
            self._keep()
        elif problem is not None:
            self._fail(step, problem)
        self.when.saved()
        return self.when.signal > 0

    def finish(self) -> None:
        """Block until the last checkpoint has been written, or could not be. Raises PeerLost."""
        while self._keeper.is_busy:
            self._workers.check()
            self._look_for_lost()
            time.sleep(BUSY_S)
        self._keeper.wait()
        self._note()

    def give_up(self) -> None:
        """The run ends with an error: block until this worker writes nothing any more."""
        self._keeper.give_up()

    def told(self) -> dict[str, Any]:
        """What there is to go on from, for a run that was told to stop."""
        return {"saved": self.saved, "problem": self.problems[-1] if self.problems else ""}

    def _begin(self, step: int) -> OSError | None:
        try:
            self._folder.begin(step)
        except OSError as error:
            return error
        return None

    def _start(self, position: Position, pieces: Pieces, holders: list[str]) -> None:
        step = position.steps
        if self._workers.rank == 0:
            self._begun, self._lost_before, self._given_up = step, set(self._lost()), set()
            self._keeper.start(step, pieces, lambda: self._complete(position, holders))
        elif pieces.nbytes:
            self._keeper.start(step, pieces)

    def _complete(self, position: Position, holders: list[str]) -> None:
        """In the background, on the first worker: what all have written becomes a checkpoint."""
        step, (config, facts) = position.steps, self._about
        try:
            files: list[FileAbout] = self._folder.gather(
                step, holders, self._timeout_s, lambda one: self._keeper.is_given_up or one in self._given_up
            )
            manifest = Manifest(1, position, config, facts, files)
            self._folder.complete(step, encode(manifest))
        except OSError:
            self._folder.give_up(step)
            raise

    def _look_for_lost(self) -> None:
        """Here, and not in the background: one thread of a rank asks MPI."""
        self._given_up = {shard_name(number) for number in self._lost() if number not in self._lost_before}

    def _note(self) -> None:
        """On the first worker: what has become of the checkpoint that was begun."""
        if self._begun < 0:
            return
        step, self._begun = self._begun, -1
        if self._keeper.problem is None:
            self.written += 1
            self.saved = step
        else:
            self._fail(step, self._keeper.problem)

    def _fail(self, step: int, error: OSError) -> None:
        why = f"checkpoint {self._folder.path / name_of(step)}: cannot be written: {error.strerror or error}"
        self.problems.append(why)
        self._warn(f"{why}; training goes on, earlier checkpoints are as they were")

    def _any(self, mine: bool) -> bool:
        return bool(self._gather(int(mine)).any())

    def _gather(self, mine: int) -> Array:
        """One small number of each worker. A collective."""
        told = np.zeros(self._workers.size, np.int64)
        told[self._workers.rank] = mine
        ring.all_gather(self._workers, told)
        return told
