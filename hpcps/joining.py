"""How the workers of a job agree, put together: their collectives, sums, buckets, exchange, and the shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import DTypeLike

from hpcps import aligned, models, nccl, optim, report, serving, staging
from hpcps.averaging import AveragingExchange, Mean
from hpcps.bucket import Bucket
from hpcps.collectives import tune
from hpcps.collectives.choice import Choice
from hpcps.collectives.engine import Engine
from hpcps.comm import compressed
from hpcps.comm.gather import all_gather_rows
from hpcps.comm.meeting import Meeting
from hpcps.comm.transport import Array, Transport
from hpcps.comm.tree import TreeAllreduce
from hpcps.device import Gpu
from hpcps.exchange import AllreduceExchange, Exchange, largest_of
from hpcps.feed import Supply
from hpcps.gathered import GatheredTables, GatherRows
from hpcps.job import Job
from hpcps.lane import AnyLane, Stages
from hpcps.loader import Loaders
from hpcps.models import Model
from hpcps.online import Learned, OnlineExchange, OnlineLane, common
from hpcps.params import Params
from hpcps.published import Kept
from hpcps.reduction import SHARDED_BYTES, Reduction, Whole, adds_in_memory, of_pieces, of_sums, started_by
from hpcps.rows import Merger
from hpcps.serving import Held, Keep, KeepPieces, Shared, decoder
from hpcps.sums import FloatSum, Sum, TreeSum
from hpcps.worker import lanes

MakeLanes = Callable[[Mapping[int, Supply]], Sequence[AnyLane]]
"""Makes the lanes of a worker whose parts draw from these supplies"""

BUCKET_BYTES = 512 << 10
"""Gradients of fewer bytes are not sent off alone, while the rest of them is computed."""


def where_all_see_it(job: Job, workers: Transport, params: Params) -> Params:
    """The parameters on the worker's GPU; or in memory that the workers of a node share, for a sharded update, or to be
    averaged where they lie; for workers that learn together in one array. A collective."""
    if not job.device.is_host:
        return params.on(job.device.put(params.flat))
    if job.strategy == "online":
        return params.on(common(workers, len(params.flat), params.flat.dtype))
    is_small = params.flat.nbytes < SHARDED_BYTES and job.strategy != "averaging"
    if job.strategy == "server" or workers.size == 1 or is_small or params.tables:
        return params
    flat = workers.empty(len(params.flat), params.flat.dtype)
    flat[:] = params.flat
    return params.on(flat)


def make_training(
    job: Job,
    workers: Transport,
    model: Model,
    held: Held,
    how: Loaders,
    keep: Keep,
    keep_pieces: KeepPieces,
) -> tuple[Sum, Exchange, MakeLanes]:
    """How the parts' gradients are added up, how they become fresh parameters, from the snapshot on that the run goes
    on from, and what makes what each of a worker's threads computes. A collective. ``keep`` and ``keep_pieces``: see
    :func:`make_exchange`."""
    make_lanes: MakeLanes
    if job.strategy == "online":
        gradients, exchange, make_lanes = make_online(job, workers, model, held.params, how)
    else:
        engine, params = make_engine(job, workers), held.params
        gradients = make_sum(job, workers, engine, len(params.dense.flat), held.shared)
        exchange, stages = make_exchange(job, workers, engine, model, held, gradients, keep, keep_pieces)
        make_lanes = partial(lanes, model, params, how, job.parts, shares=gradients.shares, stages=stages)
    if held.snapshot is not None:
        exchange.restore(held.snapshot)
    return gradients, exchange, make_lanes


def make_online(
    job: Job, workers: Transport, model: Model, params: Params, how: Loaders
) -> tuple[Sum, Exchange, MakeLanes]:
    """Lanes that learn sample after sample, which leave nothing to be summed or exchanged."""
    plan, options = job.parts, job.config.model
    loss = models.loss_of(options, model.task), options.delta
    learned = Learned(workers, loss, job.config.optimizer, params, job.kernels)

    def make_lanes(supplies: Mapping[int, Supply]) -> Sequence[AnyLane]:
        return [OnlineLane(learned, how, supplies[part], plan.size(part)) for part in plan.owned]

    nothing = [np.empty(0, job.config.train.dtype) for _ in plan.owned]
    return FloatSum(nothing, job.kernels), OnlineExchange(workers, learned, job.threads), make_lanes


def make_sum(job: Job, workers: Transport, engine: Engine, parameters: int, shared: Shared | None = None) -> Sum:
    """Memory for this worker's part gradients, and how they are added. On a GPU it is the GPU's; else what is
    all-reduced lies where all see it, and what is pushed where shards do, if there is such memory."""
    train, plan, kernels = job.config.train, job.parts, job.device.kernels
    if train.reproducible:
        agree_on_largest = largest_of(workers.size, workers.rank, engine.allreduce)
        memory = (parameters, train.dtype, visible(workers) if job.device.is_host else job.device.empty)
        rest = kernels, agree_on_largest, Merger(job.kernels)
        return TreeSum(plan.owned, plan.total, job.threads, *memory, *rest)
    if not job.device.is_host:
        return FloatSum([job.device.empty(parameters, train.dtype)], kernels)
    others = [aligned.empty(parameters, train.dtype) for _ in plan.owned[1:]]
    first = workers.empty(parameters, train.dtype) if shared is None else shared.gradient
    return FloatSum([first, *others], kernels)


def visible(workers: Transport) -> staging.Visible:
    """Memory that all workers of a node see. All must take as much, and one may have more pieces than another."""

    def empty(count: int, dtype: DTypeLike) -> Array:
        most = int(Meeting(workers).gather(np.array([count])).max())
        return workers.empty(most, dtype)[:count]

    return empty


def make_engine(job: Job, workers: Transport) -> Engine:
    """The workers' collectives. Making them is one."""
    algorithm = job.config.train.algorithm
    if algorithm == "nccl":
        algorithm = "auto"  # what is on the host is summed there
    table = tune.load(workers) if algorithm == "auto" and workers.size > 1 else ()
    engine = workers.engine = Engine(workers, job.kernels, Choice(algorithm, table), job.crowded)
    return engine


def make_reductions(job: Job, engine: Engine, counts: Sequence[int]) -> list[Reduction]:
    """How the gradients of buckets of so many parameters are summed, wherever they are."""
    if isinstance(job.device, Gpu) and job.sums_by_nccl and all(counts):
        sums = nccl.GpuSums(job.device, engine.transport)
        return [nccl.reduction(sums, count) for count in counts]
    return [make_reduction(job, engine, count) for count in counts]


def make_reduction(job: Job, engine: Engine, count: int) -> Reduction:
    """How the gradient of a bucket of ``count`` parameters is summed, wherever it is."""
    here, workers = job.device, engine.transport
    if not isinstance(here, Gpu) or workers.size == 1:
        return make_host_reduction(job, engine, count)
    is_mpis_sum = engine.choice.algorithm == "mpi" and not job.config.train.reproducible
    if is_mpis_sum and job.config.compress.kind == "none" and workers.takes_device_memory:
        return staging.on_device(engine, here, count)
    return staging.Staged(make_host_reduction(job, engine, count), here, visible(workers))


def make_host_reduction(job: Job, engine: Engine, count: int) -> Reduction:
    """How the gradient of a bucket of ``count`` parameters is summed: as codes where the run is told so."""
    compress, train = job.config.compress, job.config.train
    itemsize = np.dtype(train.dtype).itemsize
    # The norm is that of all; and a GPU updates all sooner than others could bring it what they have updated.
    shards = not job.config.optimizer.clip_norm and job.device.is_host
    if compress.kind != "none" and engine.layout.ranks > 1:
        options = compress.block, compress.fraction
        codes = compressed.make(compress.kind, engine.transport, count, train.dtype, job.kernels, *options)
        return Whole(codes.name, started_by(codes.start), count, codes.residuals())
    if not train.reproducible:
        return of_sums(engine, count, itemsize, shards)
    found = of_pieces(engine, job.order, count, itemsize, shards)
    if found is not None:
        return found
    tree = TreeAllreduce(engine.transport, job.order, count, train.dtype, job.kernels.sum_tree)
    return Whole(tree.name, started_by(tree.start), count)


def make_exchange(
    job: Job,
    workers: Transport,
    engine: Engine,
    model: Model,
    held: Held,
    gradients: Sum,
    keep: Keep,
    keep_pieces: KeepPieces,
) -> tuple[Exchange, Stages | None]:
    """How this worker's gradients become fresh parameters; and what a model that finishes them stage by stage calls.

    ``keep`` takes the records of shards on this rank, ``keep_pieces`` their state for a checkpoint.
    """
    params = held.params
    if job.config.compress.kind != "none" and workers.size == 1 and job.roles.servers == 0:
        report.note(f"compress.kind = {job.config.compress.kind!r}: one worker sends nothing, and rounds nothing", True)
    if job.strategy == "server":
        return serving.make_server_exchange(job, held, gradients, keep, keep_pieces), None
    optimizer = optim.make(job.config.optimizer, job.device.kernels, job.threads)
    if job.strategy == "averaging":
        train, samples = job.config.train, job.parts.by_worker
        mean = Mean(engine, params, samples, Merger(job.kernels), job.kernels)
        return AveragingExchange(mean, optimizer, gradients, train.average_every, train.average_warmup), None
    dense = params.dense
    is_one_sum = not job.config.train.reproducible and job.parts.total == workers.size  # on all workers alike
    overlaps = workers.size > 1 and is_one_sum and not job.config.optimizer.clip_norm
    is_added_in_memory = (
        job.device.is_host and job.config.compress.kind == "none" and adds_in_memory(engine, dense.flat.nbytes)
    )
    wheres = bucket_bounds(dense, getattr(model, "stages", ()) if overlaps and not is_added_in_memory else ())
    reductions = make_reductions(job, engine, [where.stop - where.start for _, where in wheres])
    kept = Kept(dense)
    what = dense.flat, gradients.buffer, optimizer, job.gradient_scale, job.device, kept
    buckets = [Bucket(where, one, *what) for (_, where), one in zip(wheres, reductions, strict=True)]
    names = ", ".join(dict.fromkeys(one.name for one in reductions))
    way = f"{names}, {len(buckets)} buckets" if len(buckets) > 1 else names
    shards = serving.make_row_exchange(job, held, gradients, keep_pieces) if held.elsewhere else None
    tables = None
    if params.tables:
        rest = optimizer, decoder(job), Merger(job.kernels), job.gradient_scale, job.device
        tables = GatheredTables(gather_rows(job, workers), params, *rest)
    place = workers.rank, workers.size
    exchange = AllreduceExchange(buckets, way, gradients, tables, shards, place)
    ends = {stage: number for number, (stage, _) in enumerate(wheres)}

    def ready(stage: int) -> None:
        if stage in ends:
            exchange.early(ends[stage])

    return exchange, Stages(ready, kept.bounds) if len(buckets) > 1 else None


def gather_rows(job: Job, workers: Transport) -> GatherRows:
    """How the rows of all workers are brought together, on the host; those of one worker stay where they are."""
    if job.device.is_host:
        return partial(all_gather_rows, workers)
    if workers.size == 1:
        return lambda mine: [mine]
    read = job.device.read
    return lambda mine: all_gather_rows(workers, [(keys, read(values)) for keys, values in mine])


def bucket_bounds(dense: Params, stages: Sequence[Sequence[str]]) -> list[tuple[int, slice]]:
    """The buckets that are ready after which stage: neighbouring stages of BUCKET_BYTES together, or all parameters."""
    buckets: list[tuple[int, slice]] = []
    stop = len(dense.flat)
    for number, names in enumerate(stages):
        start = min(dense.offset(name) for name in names)
        if (stop - start) * dense.flat.itemsize >= BUCKET_BYTES or start == 0:
            buckets.append((number, slice(start, stop)))
            stop = start
    return buckets if stages and stop == 0 else [(-1, slice(0, len(dense.flat)))]
