"""Checkpoints of a run, put together: where they are, when there is one, and how a run goes on from one."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hpcps import checkpoint, remainder, serving
from hpcps.checkpoint import CheckpointFolder, Facts, Found, Keeper, Saver, When, shard_name
from hpcps.checkpoint.when import LOOK_S, LOOK_SLACK_S, Stop
from hpcps.config import Config, as_tree, to_toml
from hpcps.data import Dataset
from hpcps.errors import CheckpointError, ConfigError, HpcpsError, StoppedError
from hpcps.exchange import Exchange
from hpcps.feed import Supply
from hpcps.job import Job
from hpcps.run_folder import CHECKPOINTS, RunFolder, writing
from hpcps.serving import Held
from hpcps.snapshot import Pieces
from hpcps.trainer import Plan


class Saves(NamedTuple):
    """Where checkpoints are kept, whether the run has been told to stop, and who hears of problems."""

    folder: CheckpointFolder
    stop: Stop | None
    warn: Callable[[str], None]
    neighbours: int
    """How many ranks this node has"""


def folder_of(config: Config, folder: RunFolder) -> CheckpointFolder:
    """Where the run's checkpoints are."""
    path = Path(config.checkpoint.path) if config.checkpoint.path else folder.path / CHECKPOINTS
    return CheckpointFolder(path, config.checkpoint.keep)


def data_facts(dataset: Dataset, held: Held) -> Facts:
    """What must be so of the data of a run that goes on."""
    classes = 0 if dataset.classes is None else len(dataset.classes)
    return Facts(dataset.train_count, dataset.test_count, dataset.features, classes, held.size)


def go_on(job: Job, dataset: Dataset, held: Held, begin: Found) -> Held:
    """The parameters as they are in a checkpoint. Raises ConfigError if that is of other data, or of a longer run."""
    other = checkpoint.different_data(begin.manifest.facts, data_facts(dataset, held))
    if other:
        raise ConfigError(f"{begin.path}: is a checkpoint of another run: {other}; --overwrite begins anew")
    steps, train = begin.manifest.position.steps, job.config.train
    if steps > train.epochs * (dataset.train_count // train.batch):
        why = f"train.epochs = {train.epochs} ends before step {steps}"
        raise ConfigError(f"{begin.path}: {why}; --overwrite begins anew")
    return serving.go_on(held, begin.snapshot)


def rest(job: Job, dataset: Dataset, begin: Found) -> dict[int, Supply]:
    """What this worker's parts visit in what is left of an epoch whose batches were cut otherwise, if there is one.
    Raises CheckpointError if the batches were of another size, DataError where samples cannot be read."""
    position, config = begin.manifest.position, job.config
    if position.cut and position.cut[-1] != config.train.batch:
        raise CheckpointError(f"{begin.path}: cuts batches of {position.cut[-1]} samples, not {config.train.batch}")
    if job.workers is None:
        return {}
    return remainder.supplies(dataset, job.parts, position, config.train.seed, config.data.window)


def prepare(folder: RunFolder, checkpoints: CheckpointFolder, config: Config, begin: Found | None) -> None:
    """Take out what an earlier run left, unless this one goes on from there."""
    folder.begin(to_toml(config), 0 if begin is None else begin.manifest.position.steps)
    if begin is None:
        with writing(checkpoints.path):
            checkpoints.clear()


def stopped(told: dict[str, Any], folder: Path) -> HpcpsError:
    """What is raised on all ranks when the run was told to stop; ``told`` says by what, and what is kept."""
    by = f"stopped by {signal.Signals(told['signal']).name} after step {told['step']}"
    error: HpcpsError = StoppedError(f"{by}; the same command, with --out {folder}, goes on from step {told['saved']}")
    if told["saved"] < 0:
        error = CheckpointError(f"{by}, and there is no checkpoint: {told['problem']}")
    error.known_to_all = True
    return error


def make_saver(job: Job, dataset: Dataset, held: Held, exchange: Exchange, plan: Plan, saves: Saves) -> Saver:
    """What keeps checkpoints while the workers train."""
    workers, config = job.workers, job.config
    assert workers is not None
    total = plan.epochs * plan.steps_an_epoch
    is_together = job.slack == 0 and not config.train.backup
    look_s = LOOK_S if is_together else LOOK_SLACK_S
    how = config.checkpoint.every_steps, config.checkpoint.every_s, total, look_s
    shards = job.roles.servers or (workers.size if held.elsewhere and job.strategy != "server" else 0)
    return Saver(
        workers,
        saves.folder,
        When(workers, exchange.meet, saves.stop, *how),
        exchange.pieces,
        exchange.keep,
        shards,
        as_tree(config),
        data_facts(dataset, held),
        saves.warn,
        config.run.timeout_s / 2,
        -1 if held.snapshot is None else held.snapshot.position.steps,
        job.neighbours,
        lambda: [rank - job.roles.workers for rank in job.transport.lost()],
    )


class ShardKeepers:
    """What keeps the state of the shards on this rank: none, one, or another's, too, that has been taken over."""

    def __init__(self, saves: Saves) -> None:
        self._saves = saves
        self._keepers: dict[int, Keeper] = {}

    def start(self, number: int, step: int, pieces: Pieces) -> None:
        """Begin to write what shard ``number`` has; see :meth:`hpcps.checkpoint.Keeper.start`."""
        if number not in self._keepers:
            self._keepers[number] = Keeper(self._saves.folder, shard_name(number), self._saves.neighbours)
        self._keepers[number].start(step, pieces)

    def wait(self) -> None:
        """Block until all has been written, or could not be."""
        for keeper in self._keepers.values():
            keeper.wait()

    def give_up(self) -> None:
        """Block until nothing is written any more."""
        for keeper in self._keepers.values():
            keeper.give_up()


def resumed_from(held: Held) -> list[int]:
    """The steps from which the run has gone on so far."""
    return [] if held.snapshot is None else [*held.snapshot.position.resumed, held.snapshot.position.steps]
