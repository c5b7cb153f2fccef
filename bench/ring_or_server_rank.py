"""What each rank of ``ring_or_server.py`` does: steps of given gradients in given ways, timed, verified, bytes counted.

``python ring_or_server_rank.py OPTIONS`` with a JSON object: the fields of :class:`Plan`. Rank 0 prints one line of
JSON, a list: for each round, model and way the seconds a step of the slowest worker, the bytes a step that each host
sent, how many numbers were wrong, whether rows were on shards, and the seconds of the trial that decided it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import generate
import numpy as np

from hpcps import joining, serving, trial
from hpcps.comm import mpi
from hpcps.comm.meeting import Meeting
from hpcps.comm.topology import chunk_bounds
from hpcps.comm.transport import Array, Transport
from hpcps.config import from_tree
from hpcps.first import First, FirstRows, whole
from hpcps.job import Job, prepare
from hpcps.models import Model
from hpcps.params import Params
from hpcps.rows import Rows
from hpcps.server.sharding import shard_slices
from hpcps.serving import Held

SENT = Path("/sys/class/net/eth0/statistics/tx_bytes")
TIMEOUT_S = 120.0
BATCH = 4096
BATCHES = 6
"""Different ones, in turn."""
WARM_UPS = 3
RATE = 0.5
ROWS = 2**generate.HASH_BITS
RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Gradient:
    """What a model's gradient is made of: numbers of dense parameters, and the widths of its tables."""

    dense: int
    widths: tuple[int, ...] = ()

    @property
    def tables(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(f"table{n}" for n in range(len(self.widths)))

    def first(self, rng: np.random.Generator) -> First:
        """All parameters begin at 0."""
        tables = {name: FirstRows((ROWS, width), 0) for name, width in zip(self.tables, self.widths, strict=True)}
        return First(Params.zeros({"dense": (self.dense,)}, np.float32), tables)

    def init(self, rng: np.random.Generator) -> Params:
        """The same, whole."""
        return whole(self.first(rng), None)


GRADIENTS = {
    "dense": Gradient(1 << 20),
    "logistic": Gradient(1, (1,)),
    "fm": Gradient(1, (1, 8)),
    "embedding": Gradient(1 << 18, (16,)),
    "wide": Gradient(1 << 18, (64,)),
}
"""4 MiB of numbers; and rows of 2^22 by the keys of Criteo-shaped samples, alone or with a perceptron's 1 MiB."""

SETTINGS: dict[str, dict[str, dict[str, object]]] = {
    "ring": {"train": {"strategy": "ring"}},
    "shards for tables": {"train": {"strategy": "ring"}},
    "auto": {"train": {"strategy": "auto"}},
    "colocated shards": {"train": {"strategy": "server"}, "server": {"colocated": True}},
    "server alone": {"train": {"strategy": "server"}},
}
"""The third chooses from the first two."""


@dataclass(frozen=True)
class Plan:
    """``cases``: [model, way] in turn."""

    cases: list[list[str]]
    steps: int
    rounds: int


def keys_of(batches: list[Array], workers: int, worker: int) -> list[Array]:
    """The distinct keys of a worker's samples in each of the batches."""
    bounds = chunk_bounds(BATCH, workers)
    return [np.unique(one[bounds[worker] : bounds[worker + 1]]).astype(np.int64) for one in batches]


def wrong(held: Held, steps: int, workers: int, batches: list[Array], keys: Mapping[str, Array]) -> int:
    """How many of the dense parameters, and of the rows ``keys``, are not what so many steps make of zeros."""
    rate = np.float32(RATE / BATCH)
    dense = held.params["dense"]
    found = np.count_nonzero(dense != -rate * steps * workers * pattern(len(dense)))
    if keys:
        often = np.zeros(ROWS, np.int64)
        for worker in range(workers):
            for number, own in enumerate(keys_of(batches, workers, worker)):
                often[own] += len(range(number, steps, BATCHES))
    for name, own in keys.items():
        rows = held.params[name][own] if held.rows is None else held.rows.rows(name, own)
        found += np.count_nonzero(rows != -rate * often[own, None])
    return int(found)


def pattern(count: int) -> Array:
    """The dense gradient of every worker in every step: whole numbers, whose sums are exact."""
    return (np.arange(count) % 5).astype(np.float32)


def work(job: Job, gradient: Gradient, batches: list[Array], steps: int) -> tuple[float, int]:
    """A worker's steps: (seconds a step, wrong numbers)."""
    workers = job.workers
    assert workers is not None
    held = serving.share_with_shards(job, serving.hold(job, cast(Model, gradient), RNG))
    held = held._replace(params=joining.where_all_see_it(job, workers, held.params))
    engine = joining.make_engine(job, workers)
    gradients = joining.make_sum(job, workers, engine, gradient.dense, held.shared)
    exchange, _ = joining.make_exchange(job, workers, engine, cast(Model, gradient), held, gradients, no_keep, no_keep)
    own = keys_of(batches, workers.size, workers.rank) if gradient.tables else []
    keys = [dict.fromkeys(gradient.tables, one) for one in own] or [{}] * BATCHES
    tables = list(zip(gradient.tables, gradient.widths, strict=True))
    rows = [{name: Rows(one, np.ones((len(one), width), np.float32)) for name, width in tables}
            for one in own] or [{}] * BATCHES  # fmt: skip
    values, started = pattern(gradient.dense), 0.0
    for step in range(1, WARM_UPS + steps + 1):
        if step == WARM_UPS + 1:
            workers.barrier()
            started = time.perf_counter()
        gradients.buffer[:] = values
        gradients.take(0, [rows[(step - 1) % BATCHES]] if tables else [])
        exchange.start(step)
        exchange.wait(partial(list, [keys[step % BATCHES]]))
    seconds = (time.perf_counter() - started) / steps
    exchange.finish()
    total = WARM_UPS + steps
    return seconds, wrong(held, total, workers.size, batches, keys[total % BATCHES])


def tried(job: Job, gradient: Gradient, batches: list[Array]) -> trial.Timings:
    """What a run's trial finds."""
    own = keys_of(batches[: trial.BATCHES], job.roles.workers, job.transport.rank)
    keys = [dict.fromkeys(gradient.tables, one) for one in own]
    return trial.compare(job, gradient.first(RNG), keys, trial.BLOCK_STEPS)


def serve(job: Job, gradient: Gradient) -> tuple[float, int]:
    """The steps of a shard on a rank of its own."""
    held = serving.share_with_shards(job, serving.hold(job, cast(Model, gradient), RNG))
    number = job.transport.rank - job.roles.workers
    shards = job.roles.servers
    where = shard_slices(gradient.dense, shards)[number]
    serving.make_server(job, held, where, number, shards, no_keep, no_keep).run()
    return 0.0, 0


def no_keep(*kept: object) -> None:
    """There is no folder."""


def once(transport: Transport, model: str, way: str, batches: list[Array], steps: int) -> dict[str, object]:
    """One case, from its set-up to its end."""
    optimizer = {"kind": "sgd", "learning_rate": RATE}
    tree = {"data": {"path": "none"}, "model": {"kind": "linear"}, "optimizer": optimizer, "run": {"threads": 1}}
    settings = SETTINGS[way]
    train = {"batch": BATCH, **settings["train"]}
    job = replace(prepare(transport, from_tree({**tree, **settings, "train": train})), crowded=True)
    transport.crowded(True)  # the hosts share the cores of one machine
    if job.workers is not None:
        job.workers.crowded(True)
    gradient = GRADIENTS[model]
    if way == "shards for tables":
        job = replace(job, rows_on_shards=True)
    timings = tried(job, gradient, batches) if way == "auto" and gradient.tables and transport.size > 1 else None
    if timings is not None:
        job = replace(job, rows_on_shards=timings.on_shards)
    transport.barrier()
    sent = int(SENT.read_text())
    seconds, bad = work(job, gradient, batches, steps) if job.workers is not None else serve(job, gradient)
    transport.barrier()
    sent = int(SENT.read_text()) - sent
    told = Meeting(transport).gather(np.array([seconds, sent / (WARM_UPS + steps), bad])).reshape(-1, 3)
    hosts_sent = told[:, 1].astype(int).tolist()
    found = {"seconds": float(told[:, 0].max()), "sent": hosts_sent, "wrong": int(told[:, 2].sum())}
    of_trial = None if timings is None else [timings.gathered_s, timings.sharded_s]
    return {"model": model, "way": way, **found, "on_shards": job.rows_on_shards, "trial": of_trial}


def main(plan: Plan) -> None:
    """All cases in turn, in each round."""
    transport = mpi.world(TIMEOUT_S)
    batches = [generate.criteo(BATCH, seed).indices.reshape(BATCH, -1) for seed in range(BATCHES)]
    found = [once(transport, model, way, batches, plan.steps) for _ in range(plan.rounds) for model, way in plan.cases]
    if transport.rank == 0:
        print(json.dumps(found))
        sys.stdout.flush()


if __name__ == "__main__":
    main(Plan(**json.loads(sys.argv[1])))
