"""One rank's part in a training run: data, model, then work or serve, and the run's files."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from hpcps import checkpoint, data, feed, joining, machine, models, report, resuming, serving, trial
from hpcps.checkpoint.when import Stop
from hpcps.comm.meeting import Meeting
from hpcps.comm.topology import chunk_bounds, proportional_bounds
from hpcps.comm.transport import Transport
from hpcps.config import Config, as_tree
from hpcps.data import Dataset
from hpcps.device import Gpu
from hpcps.errors import ConfigError, ModelError
from hpcps.exchange import Exchange
from hpcps.feed import Supply
from hpcps.job import TEST_BLOCKS, Job, prepare
from hpcps.loader import Loaders
from hpcps.models import Model
from hpcps.params import Params
from hpcps.report import Measures
from hpcps.resuming import Saves
from hpcps.run_folder import RunFolder, Trained
from hpcps.server.sharding import shard_slices
from hpcps.serving import Held
from hpcps.stall import Watch
from hpcps.tables import Tables, whole_tables
from hpcps.threads import Threads
from hpcps.together import Together, agree
from hpcps.trainer import Plan, Trainer, join_scores
from hpcps.uploading import DeviceLoaders
from hpcps.worker import Score, Worker, evaluate


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its summary (what ``summary.json`` holds)."""

    folder: Path
    summary: dict[str, Any]


def train_rank(
    transport: Transport,
    config: Config,
    path: Path,
    overwrite: bool,
    watch: Watch,
    resume: bool = False,
    stop: Stop | None = None,
) -> Run:
    """Train; every rank of ``transport`` calls this, with the same arguments, and gets the same Run. Blocks.

    Goes on from the newest checkpoint of an unfinished run in ``path``, and with ``resume`` of a finished one, unless
    told to ``overwrite`` it. Raises ConfigError, DataError, ModelError and CheckpointError on all ranks alike while the
    job is set up; later on the rank where it happened; StoppedError on all when told to ``stop``.
    """
    started = time.perf_counter()
    job = prepare(transport, config)
    folder = RunFolder(path)
    is_first = transport.rank == 0
    agree(job.together, lambda: folder.check(overwrite, resume) if is_first else None)
    warn = report.warn if is_first else lambda text: None
    saves = Saves(resuming.folder_of(config, folder), stop, warn, job.neighbours)
    begin = None if overwrite else checkpoint.newest(saves.folder, job.together, as_tree(config))
    dataset = load(job)
    facts = facts_of(job, dataset)
    model = agree(job.together, lambda: make_model(job, facts))
    job = trial.place_rows(job, dataset, model, None if begin is None else begin.snapshot)
    held = agree(job.together, lambda: hold(job, model))
    left: dict[int, Supply] = {}
    if begin is not None:
        held = agree(job.together, lambda: resuming.go_on(job, dataset, held, begin))
        left = agree(job.together, lambda: resuming.rest(job, dataset, begin))
        for problem in begin.damaged:
            saves.warn(f"{problem}; the checkpoint before is used")
    check_alike(job.together, held.params, "begin")
    agree(job.together, lambda: resuming.prepare(folder, saves.folder, config, begin) if is_first else None)
    watch.begin(folder.path)

    held = serving.share_with_shards(job, held)
    at_end = held.params
    if job.workers is not None:
        params = joining.where_all_see_it(job, job.workers, held.params)
        held = held._replace(params=params, host=None if job.device.is_host else at_end.flat)
        at_end = params if job.device.is_host else at_end
        trained = Trained(at_end, facts, dataset.classes, dataset.shift, dataset.scale)
        found = work(job, dataset, left, model, held, trained, folder, saves, watch)
    else:
        found = serve(job, held, folder, saves)
    together = Meeting(job.transport.without_lost()) if job.takes_over else job.together
    told = json.loads(together.once(lambda: np.frombuffer(json.dumps(found).encode(), np.uint8)).tobytes())
    if told.get("stopped"):
        raise resuming.stopped(told["stopped"], folder.path)
    peaks = together.gather(np.array([machine.peak_memory_mib()]))
    summary = {**told, "peak_memory_mib": peaks.tolist()}
    summary["wall_s"] = round(time.perf_counter() - started, 3)

    agree(together, lambda: check_alike(Meeting(job.workers), at_end, "end") if job.workers else None)
    agree(together, lambda: folder.end(summary) if is_first else None)
    return Run(folder.path, summary)


def load(job: Job) -> Dataset:
    """This rank's training and held-out blocks. A collective of all ranks; servers own nothing."""
    is_worker = job.workers is not None
    ranges = job.test_ranges()
    rank = job.transport.rank
    labels = agree(job.together, lambda: task(job.config))
    return data.load_data(
        job.config.data,
        task=labels,
        cut=lambda count: proportional_bounds(count, job.parts.bounds),
        owned=job.parts.owned if is_worker else range(0),
        cut_test=lambda count: chunk_bounds(count, TEST_BLOCKS),
        owned_test=range(ranges[rank], ranges[rank + 1]) if is_worker else range(0),
        together=job.together,
        seed=job.config.train.seed,
        min_train=job.config.train.batch,
    )


def task(config: Config) -> models.Task:
    """What the labels are: as the options say, or the user's object, or class numbers."""
    told = models.task_of(config.model)
    return told or models.make(config.model, models.Facts(0, 0), config.train.dtype, None).task


def facts_of(job: Job, dataset: Dataset) -> models.Facts:
    """What the model needs to know of the data. A collective of all ranks."""
    classes = 0 if dataset.classes is None else len(dataset.classes)
    ids: tuple[int, ...] = ()
    if job.config.model.loss == "poisson":
        data.check_counts(dataset, job.together)
    if models.takes_ids(job.config.model) and not dataset.sparse:
        ids = data.count_ids(dataset, job.together)
    entries = data.count_entries(dataset, job.together) if models.takes_as_many(job.config.model) else 0
    return models.Facts(dataset.features, classes, dataset.sparse, ids, entries, by_rows=job.strategy == "online")


def make_model(job: Job, facts: models.Facts) -> Model:
    """The model."""
    model = models.make(job.config.model, facts, job.config.train.dtype, job.device.kernels)
    if model.tables and job.config.optimizer.clip_norm:
        raise ConfigError("optimizer.clip_norm is for dense gradients; this model has tables, which it does not reach")
    return model


def hold(job: Job, model: Model) -> Held:
    """Its first parameters, the same on every rank."""
    return serving.hold(job, model, np.random.Generator(np.random.Philox(key=job.config.train.seed)))


def check_alike(together: Together, params: Params, when: str) -> None:
    """Raise ModelError on all ranks unless all have the same parameters. A collective."""
    mine = hashlib.sha256(repr([(name, params.shapes[name]) for name in params]).encode() + params.sha256().encode())
    digests = together.gather(np.frombuffer(mine.digest(), np.uint8)).reshape(together.size, -1)
    different = np.flatnonzero((digests != digests[0]).any(axis=1))
    if different.size:
        ranks = ", ".join(map(str, different))
        remedy = "init must draw from its rng alone, and nothing may depend on the rank"
        error = ModelError(f"rank(s) {ranks} {when} with other parameters than rank 0: {remedy}")
        error.known_to_all = True
        raise error


def work(
    job: Job,
    dataset: Dataset,
    left: dict[int, Supply],
    model: Model,
    held: Held,
    trained: Trained,
    folder: RunFolder,
    saves: Saves,
    watch: Watch,
) -> dict[str, Any]:
    """A worker's run, from the first step to the last; ``trained`` holds the first parameters, and at the end the last
    ones, on the host; ``left``, emptied here, what is left of an epoch that was cut otherwise. Returns what there is
    to say of it."""
    assert job.workers is not None
    config, params = job.config, held.params
    how = loaders_of(job, model, held, dataset)
    keeper = resuming.ShardKeepers(saves)
    keeps = folder.keep, keeper.start
    gradients, exchange, make_lanes = joining.make_training(job, job.workers, model, held, how, *keeps)
    pool = Threads(min(job.threads, len(job.parts.owned)))
    lanes = make_lanes(feed.supplies(dataset.train, config.train.seed))
    worker = Worker(lanes, pool, make_lanes(left) if left else ())
    left.clear()  # its samples are not kept for longer than the epoch
    plan = plan_of(job, dataset)
    reporter: report.Reporter = report.Silent()
    is_first = job.workers.rank == 0
    if is_first:
        where = "" if job.device.is_host else f", on {job.device.name}"
        report.opening(config, dataset, held.size, f"{job.strategy} ({job.why}; {exchange.way}){where}")
        report.resuming(held.snapshot)
        reporter = report.Lines(folder, plan.epochs, plan.epochs * plan.steps_an_epoch)
    test = tester(job, dataset, model, params, how, exchange)
    saver = resuming.make_saver(job, dataset, held, exchange, plan, saves)
    begin = None if held.snapshot is None else held.snapshot.position
    trainer = Trainer(job.workers, worker, gradients, exchange, job.parts, plan, reporter, test, saver, begin)
    watch.steps = lambda: trainer.pace.steps
    try:
        # Again: the user's file may have brought a library with threads of its own.
        with threadpool_limits(1):
            measures, sha256 = trainer.run(), ""
            if not trainer.is_stopped:
                place = folder if is_first else None
                if not job.device.is_host:
                    trained.params.flat[:] = job.device.read(params.flat)
                sha256 = agree(Meeting(job.workers), lambda: write(trained, held, place, exchange))
            exchange.finish()
            keeper.wait()
            saver.finish()
    except BaseException:
        pool.close(wait=False)
        saver.give_up()
        keeper.give_up()
        raise
    pool.close()
    if trainer.is_stopped:
        return {"stopped": {"signal": saver.when.signal, "step": trainer.pace.steps, **saver.told()}}
    more = {"checkpoints": saver.written, "checkpoint_problems": saver.problems, "params_sha256": sha256}
    return {**summary(job, dataset, held, trainer, measures, exchange), **more}


def plan_of(job: Job, dataset: Dataset) -> Plan:
    """How many steps there are, and what is to be said of them."""
    train = job.config.train
    return Plan(
        train.epochs,
        train.batch,
        dataset.train_count // train.batch,
        train.report_every,
        train.straggler_factor,
        job.nodes[: job.roles.workers],
        train.backup,
    )


def loaders_of(job: Job, model: Model, held: Held, dataset: Dataset) -> Loaders:
    """What brings samples to where the worker computes."""
    tables, dtype = tables_of(job, model, held), job.config.train.dtype
    how = Loaders(tables, dataset.shift, dataset.scale, dtype, job.kernels)
    return DeviceLoaders(how, job.device, model.task == "multiclass") if isinstance(job.device, Gpu) else how


def tables_of(job: Job, model: Model, held: Held) -> Tables:
    """The model's tables, wherever they are."""
    source = serving.row_source(job, held)
    if source is None:
        return whole_tables(model, held.params, job.kernels, job.device)
    shapes = {name: first.shape for name, first in held.elsewhere.items()}
    return Tables(model, shapes, job.config.train.dtype, source, job.kernels, job.device)


def write(trained: Trained, held: Held, folder: RunFolder | None, exchange: Exchange) -> str:
    """Write the model, on the rank that has the folder; returns the SHA-256 of its parameters there."""
    try:
        return "" if folder is None else folder.write_model(trained, held.stored_elsewhere())
    finally:
        exchange.meet()  # until here the others have served the one that writes


def serve(job: Job, held: Held, folder: RunFolder, saves: Saves) -> dict[str, Any]:
    """A server's run."""
    number, shards = job.transport.rank - job.roles.workers, job.roles.servers
    where = shard_slices(len(held.params.flat), shards)[number]
    keeper = resuming.ShardKeepers(saves)
    try:
        serving.make_server(job, held, where, number, shards, folder.keep, keeper.start).run()
    except BaseException:
        keeper.give_up()
        raise
    keeper.wait()
    return {}


def tester(
    job: Job, dataset: Dataset, model: Model, params: Params, how: Loaders, exchange: Exchange
) -> Callable[[], Measures]:
    """The evaluation of the held-out samples: a collective of the workers."""
    workers = job.workers
    assert workers is not None

    def score(block: data.Block) -> Score:
        return evaluate(model, params, how.tables, block, how.of(block), job.device)

    def test() -> Measures:
        if not dataset.test_count:
            return Measures()
        mine = [score(block) for block in dataset.test.values()]
        exchange.meet()
        return report.measures(model, join_scores(workers, mine, job.test_ranges()), dataset.test_count)

    return test


def summary(
    job: Job, dataset: Dataset, held: Held, trainer: Trainer, measures: Measures, exchange: Exchange
) -> dict[str, Any]:
    """What ``summary.json`` holds, the wall time excepted."""
    pace = trainer.pace
    return {
        **measures.said(),
        "stragglers": [asdict(one) for one in trainer.stragglers.of_all()],
        "samples_per_s": round(pace.samples_per_s, 1),
        "train_s": round(pace.train_s, 6),
        "first_step_s": round(pace.first_step_s, 6),
        "steps": pace.steps,
        "epochs": job.config.train.epochs,
        "ranks": job.transport.size,
        "lost_ranks": [job.transport.numbers[rank] for rank in job.transport.lost()],
        "workers": job.roles.workers,
        "servers": job.roles.servers,
        "threads": job.threads,
        "device": job.device.name,
        "transport": job.transport.description,
        "strategy": job.strategy,
        "why": job.why,
        "exchange": exchange.way,
        **exchange.told(),
        "staleness": job.config.server.staleness,
        "backup": job.config.train.backup,
        "reproducible": job.config.train.reproducible,
        "train_samples": dataset.train_count,
        "test_samples": dataset.test_count,
        "parameters": held.size,
        "resumed_from": resuming.resumed_from(held),
    }
