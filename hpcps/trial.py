"""Where rows of tables are with ``train.strategy = "auto"``: all-gathered, or on shards of all workers, by trial.

Of k rows a worker an all-gather sends (P - 1) k, shards 2 k (P - 1) / P, but in more messages, one after the other, and
with more work between them. Which is faster depends on keys, widths, links, cores and library. So before the run both
ways take steps of zero gradients at the keys of its first batches, by the same functions as in the run. The seconds of
the slowest worker decide, which all ranks know. What is all-reduced beside rows is the same in both ways, and left out.
With GPUs, too: there gathered rows update tables on every GPU, and rows of shards are copied from the host and back.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import cast

import msgspec
import numpy as np
from numpy.typing import DTypeLike

from hpcps import aligned, optim, parts, serving
from hpcps.comm.meeting import Meeting
from hpcps.comm.transport import Array
from hpcps.config import Optimizer as Options
from hpcps.data import Dataset
from hpcps.device import HOST, Gpu
from hpcps.exchange import ServerExchange
from hpcps.feed import feeds
from hpcps.first import Begins, First
from hpcps.gathered import GatheredTables
from hpcps.job import Job
from hpcps.joining import gather_rows
from hpcps.loader import Loaders
from hpcps.models import Model
from hpcps.params import Params, count
from hpcps.rows import Merger, PulledRows, Rows
from hpcps.serving import Held
from hpcps.snapshot import Snapshot
from hpcps.sums import FloatSum, Summed
from hpcps.tables import Tables, WholeRows
from hpcps.together import agree

FEW_STEPS = 200
"""A run of fewer steps has no trial."""
RULE_NODES = 4
"""Without one, rows are on shards from so many nodes on, where the bytes that they save begin to make up for the
messages (docs/SERVER.md)."""
BATCHES = 4
"""Whose keys are tried, in turn."""
WARM_UPS = 2
BLOCKS = 5
"""Of each way, by turns."""
BLOCK_S = 0.1
BLOCK_STEPS = 20
"""At most in a block; and not more than a hundredth of the run's."""
CLEAR = 1.5
"""After two blocks, a way that is slower by so much is tried no longer."""
MEMORY_PART = 0.5
"""Tables that would take more of a node's memory, on all of its ranks together, or of a GPU's, are not gathered."""

Keys = Mapping[str, Array]
Step = Callable[[int], None]


@dataclass(frozen=True)
class Timings:
    """Seconds a step of the slowest worker, the median of the blocks."""

    gathered_s: float
    sharded_s: float

    @property
    def on_shards(self) -> bool:
        """Whether shards are faster."""
        return self.sharded_s < self.gathered_s

    @property
    def why(self) -> str:
        """For people."""
        ways = {"an all-gather": self.gathered_s, "shards": self.sharded_s}
        (fast, low), (slow, high) = sorted(ways.items(), key=lambda way: way[1])
        return f"because a step of rows by {fast} takes {low * 1e3:.3g} ms, by {slow} {high * 1e3:.3g} ms"


def place_rows(job: Job, dataset: Dataset, model: Model, begin: Snapshot | None) -> Job:
    """The job with the place of its rows, where that is to be found; ``begin`` is what the run goes on from. A
    collective of all ranks, which find the same."""
    if job.config.train.strategy != "auto" or not model.tables or job.roles.workers == 1:
        return job
    train = job.config.train
    rng = np.random.Generator(np.random.Philox(key=train.seed))
    first = agree(job.together, lambda: cast(Begins, model).first(rng))
    steps = train.epochs * (dataset.train_count // train.batch)
    found = _known(job, first, steps, begin)
    if found is None:
        batches = agree(job.together, lambda: first_keys(job, dataset, model, first))
        timings = compare(job, first, batches, max(1, min(BLOCK_STEPS, steps // 100)))
        found = timings.on_shards, timings.why
    on_shards, why = found
    where = "on shards" if on_shards else "all-gathered"
    return replace(job, rows_on_shards=on_shards, why=f"rows of tables {where} {why}")


def _known(job: Job, first: First, steps: int, begin: Snapshot | None) -> tuple[bool, str] | None:
    """Whether rows are on shards, and why, where that needs no trial. A collective."""
    server, workers = job.config.server, job.roles.workers
    if server.threshold or server.kkt:
        return True, f"because server.{'threshold' if server.threshold else 'kkt'} is for rows that are pushed"
    if begin is not None and begin.position.workers == workers:
        return any(not piece.is_whole for piece in begin.pieces.tables), "because they were at the checkpoint"
    size_bytes = _whole_bytes(job, first)
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    is_too_large = size_bytes * job.neighbours > MEMORY_PART * memory_bytes
    is_too_large_there = isinstance(job.device, Gpu) and size_bytes > MEMORY_PART * job.device.free_bytes()
    found = job.together.gather(np.array([is_too_large, is_too_large_there])).reshape(-1, 2)
    if found[:, 0].any():
        return True, f"because whole tables take {size_bytes * job.neighbours / 2**30:.1f} GiB of a node's memory"
    if found[:, 1].any():
        return True, f"because whole tables take {size_bytes / 2**30:.3g} GiB of a GPU's memory"
    if steps < FEW_STEPS:
        nodes = len(set(job.nodes))
        where = f"{nodes} nodes" if nodes > 1 else "one node"
        return nodes >= RULE_NODES, f"because workers are on {where}, and {steps} steps are too few for a trial"
    return None


def _whole_bytes(job: Job, first: First) -> int:
    """What all tables take on a worker that has them whole, with the optimiser's state."""
    dtype = np.dtype(job.config.train.dtype)
    states = len(optim.make(_optimizer(job), job.kernels).init(np.zeros(1, dtype)))
    return sum(math.prod(rows.shape) for rows in first.tables.values()) * dtype.itemsize * (1 + states)


def _optimizer(job: Job) -> Options:
    """The run's, or, in place of the user's own, which is not to see steps that there are not, SGD."""
    options = job.config.optimizer
    return options if ":" not in options.kind else Options(kind="sgd")


def first_keys(job: Job, dataset: Dataset, model: Model, first: First) -> list[Keys]:
    """The distinct keys of each table in this worker's share of the first batches. Raises DataError."""
    train, merger = job.config.train, Merger(job.kernels)
    shapes = {name: rows.shape for name, rows in first.tables.items()}
    tables = Tables(model, shapes, train.dtype, _pulled(job, first), job.kernels)
    how = Loaders(tables, dataset.shift, dataset.scale, train.dtype, job.kernels)
    count = min(BATCHES, dataset.train_count // train.batch)
    by_part = []
    for number in job.parts.owned:
        block = dataset.train[number]
        (feed,) = feeds(how, [block], [job.parts.size(number)])
        feed.begin([parts.order(train.seed, 0, number, len(block), block.window)])
        by_part.append([feed.load(batch).keys for batch in range(count)])
    return [
        {name: merger.union([part[batch][name] for part in by_part]) for name in tables.names} for batch in range(count)
    ]


def compare(job: Job, first: First, batches: Sequence[Keys], block_steps: int) -> Timings:
    """Time both ways, in blocks of up to ``block_steps``, with the keys of this worker's ``batches`` in turn. A
    collective of all ranks, which all work, and get the same figures. It takes the memory of the rows of these keys,
    twice. Raises CommTimeout, PeerLost."""
    assert job.workers is not None
    job.workers.crowded(job.crowded)
    job = replace(job, config=msgspec.structs.replace(job.config, optimizer=_optimizer(job)))
    exchange, through_shards = _sharded(job, first, batches)
    ways = _gathered(job, first, batches), through_shards
    counts = [max(1, min(block_steps, int(BLOCK_S / _timed(job, way, range(1, WARM_UPS + 1))))) for way in ways]
    seconds: list[list[float]] = [[], []]
    for block in range(BLOCKS):
        for own, way, each in zip(seconds, ways, counts, strict=True):
            start = WARM_UPS + 1 + block * each
            own.append(_timed(job, way, range(start, start + each)))
        low, high = sorted(map(median, seconds))
        if block and high > CLEAR * low:
            break
    exchange.finish()
    return Timings(*map(median, seconds))


def _timed(job: Job, way: Step, steps: range) -> float:
    """Seconds a step of the slowest worker. A collective."""
    job.transport.barrier()
    started = time.perf_counter()
    for step in steps:
        way(step)
    if isinstance(job.device, Gpu):
        job.device.synchronize()
    mine = (time.perf_counter() - started) / len(steps)
    return float(Meeting(job.transport).gather(np.array([mine])).max())


def _zeros(job: Job, first: First, batches: Sequence[Keys]) -> list[Summed]:
    """Gradients of zeros at these keys, as a worker's sum has them: exact ones of rows are on the host."""
    dtype, rows_dtype = job.config.train.dtype, serving.decoder(job).rows_dtype
    pieces = [job.order.counts[job.transport.rank]] if job.config.train.reproducible else []
    dense = np.empty((*pieces, 0), dtype)
    there = HOST if job.config.train.reproducible else job.device

    def rows(name: str, keys: Array) -> Rows:
        return Rows(keys, there.zeros((len(keys), first.tables[name].width), rows_dtype))

    return [Summed(dense, 1.0, {name: rows(name, own) for name, own in keys.items()}) for keys in batches]


def _gathered(job: Job, first: First, batches: Sequence[Keys]) -> Step:
    """A step of rows that are all-gathered, on tables of which memory is taken where they are touched alone; on a GPU
    of all."""
    assert job.workers is not None
    here, dtype = job.device, np.dtype(job.config.train.dtype)
    zeros = _untouched if here.is_host else here.zeros
    shapes = {name: rows.shape for name, rows in first.tables.items()}
    params = Params(shapes, zeros((count(shapes),), dtype), tuple(shapes))
    optimizer = optim.make(job.config.optimizer, here.kernels, job.threads)

    def init(table: Array) -> dict[str, Array]:
        return {name: zeros(table.shape, dtype) for name in optimizer.init(table[:0])}

    rest = serving.decoder(job), Merger(job.kernels), job.gradient_scale, here
    tables = GatheredTables(gather_rows(job, job.workers), params, replace(optimizer, init=init), *rest)
    rows, gradients = WholeRows(params, here.kernels), _zeros(job, first, batches)

    def step(number: int) -> None:
        tables.update(number, gradients[number % len(batches)])
        for name, keys in batches[(number + 1) % len(batches)].items():
            rows.rows(name, keys)

    return step


def _sharded(job: Job, first: First, batches: Sequence[Keys]) -> tuple[ServerExchange, Step]:
    """The same on shards of all workers; and what is to be finished then."""
    nothing = Params.zeros({}, job.config.train.dtype)
    held = serving.share_with_shards(job, Held(nothing, first.tables, _pulled(job, first)))
    unused = FloatSum([nothing.flat], job.kernels)
    exchange = serving.make_row_exchange(job, held, unused, lambda number, step, pieces: None)
    rows, gradients = serving.row_source(job, held), _zeros(job, first, batches)
    assert rows is not None

    def step(number: int) -> None:
        exchange.push(number, gradients[number % len(batches)])
        wanted = batches[(number + 1) % len(batches)]
        exchange.wait(lambda: [wanted])
        for name, keys in wanted.items():
            rows.rows(name, keys)

    return exchange, step


def _pulled(job: Job, first: First) -> PulledRows:
    widths = {name: rows.width for name, rows in first.tables.items()}
    return PulledRows(widths, job.config.train.dtype, job.kernels)


def _untouched(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Zeros that begin at a cache line, of which no page is taken before it is written to."""
    size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size_bytes + aligned.LINE_BYTES, np.uint8)
    start = -raw.ctypes.data % aligned.LINE_BYTES
    return raw[start : start + size_bytes].view(dtype).reshape(shape)
