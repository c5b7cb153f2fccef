"""What each rank of ``stragglers.py`` does: the last one holds the shard, the others are workers, some of them slow.

``python stragglers_rank.py OPTIONS`` with a JSON object: the fields of :class:`Plan`. Rank 0 prints one line of JSON: a
list of what was found, one setting after the other.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import hpcps_kernels
import numpy as np

from hpcps import optim
from hpcps.comm import mpi
from hpcps.comm.meeting import Meeting
from hpcps.comm.mpi import MpiTransport
from hpcps.comm.order import in_turn
from hpcps.comm.transport import Array
from hpcps.config import Optimizer
from hpcps.models import Batch
from hpcps.models.linear import Softmax
from hpcps.params import Params
from hpcps.rows import Merger
from hpcps.server.backup import BackupShard
from hpcps.server.remote import RemoteClient
from hpcps.server.serve import Server
from hpcps.server.store import Shard, Update
from hpcps.sums import Decoder, Summed

FEATURES, CLASSES = 784, 10
IDX_HEADERS = {"images": 16, "labels": 8}
LOOK_S = 0.04
"""How often the shard's parameters are copied, to be evaluated when the workers have finished."""
TIMEOUT_S = 60.0
KERNELS = hpcps_kernels.load("cpu")


@dataclass(frozen=True)
class Plan:
    """``settings``: [kind, slack, backup] in turn; a kind is none, persistent (worker 0 is slow) or transient (each
    step of any worker is, with ``probability``)."""

    data: str
    settings: list[list]
    seconds: float
    batch: int
    learning_rate: float
    work_s: float
    factor: float
    probability: float
    seed: int


@dataclass
class Course:
    """The shard's parameters over time."""

    params_now: Array
    started: float = 0.0
    deadline: float = 0.0
    times: list[float] = field(default_factory=list)
    params: list[Array] = field(default_factory=list)
    ages_now: Counter[int] = field(default_factory=Counter)
    ages: Counter[int] = field(default_factory=Counter)
    updates: int = 0
    due: float = 0.0

    def begin(self, started: float, seconds: float) -> None:
        """From now on; what comes after ``seconds`` is not looked at."""
        self.started, self.deadline, self.due = started, started + seconds, started
        self.look(started)

    def look(self, now: float) -> None:
        """Keep the parameters of now."""
        self.times.append(now - self.started)
        self.params.append(self.params_now.copy())
        self.ages = Counter(self.ages_now)
        self.due = now + LOOK_S

    def updated(self, update: Update) -> None:
        """Told by the shard."""
        now = time.monotonic()
        self.updates += now < self.deadline
        if self.due <= now < self.deadline:
            self.look(now)


def read(folder: str, kind: str, what: str, itemsize: int) -> Array:
    """One file of Fashion-MNIST, (n, itemsize) uint8."""
    path = Path(folder, f"{kind}-{what}-idx{3 if what == 'images' else 1}-ubyte.gz")
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)[IDX_HEADERS[what] :].reshape(-1, itemsize)


def part(folder: str, kind: str, begin: int, end: int) -> tuple[Array, Array]:
    """Samples begin .. end - 1: images (n, 784) float32 in 0 .. 1 less the mean training image, and classes (n,)."""
    training = read(folder, "train", "images", FEATURES)
    images = training if kind == "train" else read(folder, kind, "images", FEATURES)
    samples = (images[begin:end] - training.mean(axis=0).astype(np.float32)) / 255
    return samples, read(folder, kind, "labels", 1)[begin:end, 0].astype(np.int64)


def slowness(plan: Plan, kind: str, worker: int, steps: int) -> Array:
    """By which factor each step of a worker is longer; the same in every setting."""
    if kind == "transient":
        slow = np.random.default_rng([plan.seed, worker]).random(steps) < plan.probability
        return np.where(slow, plan.factor, 1.0)
    return np.full(steps, plan.factor if kind == "persistent" and worker == 0 else 1.0)


def most_steps(plan: Plan) -> int:
    """How many steps a worker can make at most. All make as many: those for which no time was left are empty."""
    return int(plan.seconds / plan.work_s) + 1


def work(transport: MpiTransport, plan: Plan, kind: str, slack: int, samples: Array, labels: Array) -> list[float]:
    """One worker's course: [steps, seconds, seconds waited], until time was up."""
    params = Params.zeros({"weight": (CLASSES, FEATURES), "bias": (CLASSES,)}, np.float32)
    gradient = Params.zeros({"weight": (CLASSES, FEATURES), "bias": (CLASSES,)}, np.float32)
    model = Softmax(FEATURES, CLASSES, "float32", KERNELS)
    server, whole = transport.size - 1, slice(0, len(params.flat))
    decoder = Decoder(False, np.float32, KERNELS)
    client = RemoteClient(transport, params.flat, None, [whole], [server], transport.rank, decoder)
    rng = np.random.default_rng([plan.seed, transport.rank, 1])
    steps = most_steps(plan)
    longer = slowness(plan, kind, transport.rank, steps)
    found: list[float] = []
    transport.barrier()
    started, step, made = time.monotonic(), 1, 0
    while step <= steps:
        seconds = time.monotonic() - started
        if seconds < plan.seconds:
            drawn = rng.integers(0, len(samples), plan.batch)
            gradient.flat.fill(0)
            model.loss_gradient(params, Batch(samples[drawn], labels[drawn]), gradient)
            ready = started + seconds + plan.work_s * longer[step - 1]
            time.sleep(max(0.0, ready - time.monotonic()))
            made += 1
        elif not found:
            found = [made, seconds, client.traffic().waited_s]
            gradient.flat.fill(0)
        client.push(step, Summed(gradient.flat, 1.0), slack)
        reached = client.pull(step, {}, slack)
        if reached > step:  # the others have gone on
            client.go_on(reached, None)
        step = reached + 1
    client.finish()
    return found or [made, time.monotonic() - started, client.traffic().waited_s]


def serve(transport: MpiTransport, plan: Plan, backup: int, held_out: Batch) -> dict[str, object]:
    """The shard's course: the held-out loss over time, the mean age of a gradient, updates a second."""
    workers = transport.size - 1
    params = Params.zeros({"weight": (CLASSES, FEATURES), "bias": (CLASSES,)}, np.float32)
    optimizer = optim.make(Optimizer(kind="sgd", learning_rate=plan.learning_rate), KERNELS)
    decoder = Decoder(False, np.float32, KERNELS)
    scale = 1.0 / (plan.batch * workers)
    course = Course(params.flat)
    parts = optimizer, decoder, Merger(KERNELS), in_turn(workers), scale
    if backup:
        late = {"samples": [plan.batch] * workers, "backup": backup}
        shard: Shard = BackupShard(params.flat, *parts, on_update=course.updated, **late)
    else:
        shard = Shard(params.flat, *parts, on_update=course.updated)
    course.ages_now = shard.staleness
    server = Server(transport, shard, 0, list(range(workers)), decoder, [1] * workers, copies=True)
    transport.barrier()
    course.begin(time.monotonic(), plan.seconds)
    server.run()
    model, losses = Softmax(FEATURES, CLASSES, "float32", KERNELS), []
    for one in course.params:
        params.flat[:] = one
        losses.append(model.loss(params, held_out) / len(held_out.labels))
    pushes = sum(course.ages.values())
    age = sum(age * often for age, often in course.ages.items()) / max(1, pushes)
    return {"times": course.times, "losses": losses, "age": age, "updates": course.updates}


def main(plan: Plan) -> None:
    """All settings, one after the other."""
    transport = mpi.world(TIMEOUT_S)
    transport.crowded(True)  # ranks wait more than they work; the cores are for those that do
    meeting, workers = Meeting(transport), transport.size - 1
    if transport.rank == workers:
        held_out = Batch(*part(plan.data, "t10k", 0, 10_000))
    else:
        own = 60_000 // workers
        samples, labels = part(plan.data, "train", transport.rank * own, (transport.rank + 1) * own)
    found = []
    for kind, slack, backup in plan.settings:
        told: dict[str, object] = {}
        course = [0.0, 0.0, 0.0]
        if transport.rank == workers:
            told = serve(transport, plan, backup, held_out)
        else:
            course = work(transport, plan, kind, slack, samples, labels)
        courses = meeting.gather(np.array(course)).reshape(-1, 3)[:workers].tolist()
        found.append({"kind": kind, "slack": slack, "backup": backup, "workers": courses, **told})
    if transport.rank == workers:
        print(json.dumps(found))
        sys.stdout.flush()


if __name__ == "__main__":
    main(Plan(**json.loads(sys.argv[1])))
