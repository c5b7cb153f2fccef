"""How the workers of a job agree, put together: their collectives, sums, buckets, exchange, and the shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from hpcps import optim, report
from hpcps.collectives import tune
from hpcps.collectives.choice import Choice
from hpcps.collectives.engine import Engine
from hpcps.comm import compressed
from hpcps.comm.gather import all_gather_rows
from hpcps.comm.meeting import Meeting
from hpcps.comm.memory import Memory, private
from hpcps.comm.transport import Array, Transport
from hpcps.comm.tree import TreeAllreduce
from hpcps.errors import ConfigError
from hpcps.exchange import (
    AllreduceExchange,
    Bucket,
    Exchange,
    GatheredTables,
    ServerExchange,
    ShardedTables,
    TableExchange,
    largest_of,
)
from hpcps.job import Job
from hpcps.lane import Ready
from hpcps.models import Model
from hpcps.params import Params
from hpcps.reduction import SHARDED_BYTES, Reduction, Whole, of_pieces, of_sums, started_by
from hpcps.rows import Merger
from hpcps.server.client import Client, DirectClient, RemoteClient
from hpcps.server.delay import Compensated, Delay, Scaled, Undelayed
from hpcps.server.serve import AsTheyCome, Server, Turns
from hpcps.server.sharding import Roles, roles, rows_of_shard, shard_slices
from hpcps.server.store import Shard
from hpcps.server.turns import Recorded
from hpcps.server.turns import file_name as order_file
from hpcps.server.turns import load as load_turns
from hpcps.sums import Decoder, FloatSum, Sum, TreeSum

BUCKET_BYTES = 512 << 10
"""Gradients of fewer bytes are not sent off alone, while the rest of them is computed."""
SHARDED_TABLES_WORKERS = 4
"""From here on shards of tables send fewer bytes than an all-gather: of k rows a worker 2 k, against (P - 1) k."""


Keep = Callable[[str, bytes], None]
"""Puts a file of this name and content into the run's folder."""


def no_keep(name: str, content: bytes) -> None:
    """For what keeps nothing."""


class Shared(NamedTuple):
    """What workers and shards of one node have together, instead of sending it."""

    memory: Memory
    gradient: Array
    """Of the dense parameters, for this rank's sum: the shards read it"""


def share_with_shards(job: Job, params: Params) -> tuple[Params, Shared | None]:
    """The parameters in memory that workers and shards have together, so that what a shard updates is fresh at every
    worker, and memory for gradients; or the parameters as they are, and None. A collective of all ranks.

    It takes one node, and steps of which each is added up: then parameters change only while all workers wait.
    """
    is_server = job.strategy == "server" and job.roles.servers > 0
    if not is_server or job.slack != 0 or params.tables or job.config.train.reproducible:
        return params, None
    memory, dtype = job.transport.memory, params.flat.dtype
    common = memory.common(len(params.flat), dtype) if len(memory.nodes) == 1 else None
    if common is None:
        return params, None
    if job.transport.rank == 0:
        common[:] = params.flat
    gradient = job.transport.empty(len(params.flat), dtype)
    job.transport.barrier()
    return params.on(common), Shared(memory, gradient)


def where_all_see_it(job: Job, workers: Transport, params: Params) -> Params:
    """The parameters in memory that the workers of a node share, for a sharded update. A collective."""
    is_small = params.flat.nbytes < SHARDED_BYTES
    if job.strategy == "server" or workers.size == 1 or is_small or params.tables:
        return params
    flat = workers.empty(len(params.flat), params.flat.dtype)
    flat[:] = params.flat
    return params.on(flat)


def decoder(job: Job) -> Decoder:
    """How summed gradients travel."""
    return Decoder(job.config.train.reproducible, job.config.train.dtype, job.kernels)


def make_sum(job: Job, workers: Transport, engine: Engine, parameters: int, shared: Shared | None = None) -> Sum:
    """Memory for this worker's part gradients, and how they are added; what is all-reduced lies where all see it, and
    what is pushed where shards do, if there is such memory."""
    train, plan = job.config.train, job.parts

    def visible(count: int, dtype: DTypeLike) -> Array:
        """All workers must take as much, and one may have more pieces than another."""
        most = int(Meeting(workers).gather(np.array([count])).max())
        return workers.empty(most, dtype)[:count]

    if train.reproducible:
        agree_on_largest = largest_of(workers.size, workers.rank, engine.allreduce)
        memory = (parameters, train.dtype, visible)
        return TreeSum(plan.owned, plan.total, job.threads, *memory, job.kernels, agree_on_largest)
    others = [private(parameters, train.dtype) for _ in plan.owned[1:]]
    first = workers.empty(parameters, train.dtype) if shared is None else shared.gradient
    return FloatSum([first, *others], job.kernels)


def make_engine(job: Job, workers: Transport) -> Engine:
    """The workers' collectives. Making them is one."""
    algorithm = job.config.train.algorithm
    table = tune.load(workers) if algorithm == "auto" and workers.size > 1 else ()
    engine = workers.engine = Engine(workers, job.kernels, Choice(algorithm, table), job.crowded)
    return engine


def make_reduction(job: Job, engine: Engine, count: int) -> Reduction:
    """How the gradient of a bucket of ``count`` parameters is summed: as codes where the run is told so."""
    compress, train = job.config.compress, job.config.train
    itemsize = np.dtype(train.dtype).itemsize
    shards = not job.config.optimizer.clip_norm  # which asks for the norm of all
    if compress.kind != "none" and engine.layout.ranks > 1:
        options = compress.block, compress.fraction
        codes = compressed.make(compress.kind, engine.transport, count, train.dtype, job.kernels, *options)
        return Whole(codes.name, started_by(codes.start), count)
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
    params: Params,
    gradients: Sum,
    keep: Keep,
    shared: Shared | None = None,
) -> tuple[Exchange, Ready | None]:
    """How this worker's gradients become fresh parameters; and what a model that finishes them stage by stage calls."""
    if job.strategy == "server":
        return make_server_exchange(job, params, gradients, keep, shared), None
    optimizer = optim.make(job.config.optimizer, job.kernels, job.threads)
    dense = params.dense
    is_one_sum = not job.config.train.reproducible and len(gradients.shares) == 1
    overlaps = workers.size > 1 and is_one_sum and not job.config.optimizer.clip_norm
    stages = getattr(model, "stages", ()) if overlaps else ()
    wheres = bucket_bounds(dense, stages)
    reductions = [make_reduction(job, engine, where.stop - where.start) for _, where in wheres]
    buckets = [Bucket(where, one, dense.flat, optimizer) for (_, where), one in zip(wheres, reductions, strict=True)]
    if job.config.compress.kind != "none" and workers.size == 1:
        report.note(f"compress.kind = {job.config.compress.kind!r}: one worker sends nothing, and rounds nothing", True)
    names = ", ".join(dict.fromkeys(one.name for one in reductions))
    way = f"{names}, {len(buckets)} buckets" if len(buckets) > 1 else names
    tables = make_table_exchange(job, workers, params, optimizer) if params.tables else None
    exchange = AllreduceExchange(buckets, way, gradients, job.gradient_scale, tables)
    ends = {stage: number for number, (stage, _) in enumerate(wheres)}

    def ready(stage: int) -> None:
        if stage in ends:
            exchange.early(ends[stage])

    return exchange, ready if len(buckets) > 1 else None


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


def make_table_exchange(job: Job, workers: Transport, params: Params, optimizer: optim.Optimizer) -> TableExchange:
    """How tables get fresh beside all-reduced dense parameters: as configured, or by what costs fewer bytes."""
    merger = Merger(job.kernels)
    if job.config.train.strategy == "auto" and workers.size >= SHARDED_TABLES_WORKERS:
        everywhere = roles(workers.size, workers.size, colocated=True)
        return ShardedTables(make_client(job, everywhere, params, [slice(0, 0)] * workers.size, no_keep), merger)
    gather = partial(all_gather_rows, workers)
    return GatheredTables(gather, params, optimizer, decoder(job), merger, job.gradient_scale)


def make_server_exchange(
    job: Job, params: Params, gradients: Sum, keep: Keep, shared: Shared | None = None
) -> ServerExchange:
    """Gradients to shards, parameters from them."""
    options = job.config.server
    shards = job.roles.servers or options.count
    client = make_client(job, job.roles, params, shard_slices(len(params.dense.flat), shards), keep, shared)
    where = "of all ranks" if job.roles.are_colocated else "alone" if job.roles.servers else "of this process"
    staleness = f"staleness {options.staleness}" if isinstance(options.staleness, int) else "asynchronous"
    through = ", in the node's memory" if shared is not None else ""
    way = f"push to {shards} shard{'s' * (shards > 1)} {where}, pull from there{through}; {staleness}"
    return ServerExchange(client, gradients, Merger(job.kernels), way, job.slack, options.warmup_steps)


def make_client(
    job: Job, planned: Roles, params: Params, where: list[slice], keep: Keep, shared: Shared | None = None
) -> Client:
    """The way to the shards, of which number s has ``where[s]`` of the dense parameters: on their ranks, or, for a rank
    alone, in its own process."""
    dense, rank = params.dense.flat, job.transport.rank
    if not planned.servers:
        tables = {name: params.table(name) for name in params.tables}
        shards = [make_shard(job, dense[part], tables if number == 0 else {}) for number, part in enumerate(where)]
        return DirectClient(shards, where)
    ranks = [planned.server_rank(shard) for shard in range(len(where))]
    server = make_server(job, params, where, ranks.index(rank), keep, shared) if planned.are_colocated else None
    memory = None if shared is None else shared.memory
    return RemoteClient(job.transport, params, where, ranks, rank, decoder(job), server, memory)


def make_server(
    job: Job, params: Params, where: list[slice], number: int, keep: Keep, shared: Shared | None = None
) -> Server:
    """Shard ``number``, and what serves it; on ``params`` themselves where they are shared. ``keep`` takes its record,
    if there is to be one."""
    own = rows_of_shard(number, len(where))
    tables = {name: params.table(name)[own].copy() for name in params.tables}
    dense = params.dense.flat[where[number]]
    shard = make_shard(job, dense.copy() if shared is None else dense, tables)
    workers, options = list(range(job.roles.workers)), job.config.server
    turns: Turns = AsTheyCome()
    if options.record:
        turns = Recorded(lambda record: keep(order_file(number), record))
    if options.replay:
        turns = load_turns(Path(options.replay), number, len(workers))
    memory = None if shared is None else shared.memory
    return Server(job.transport, shard, number, workers, decoder(job), job.order.counts, turns, memory)


def make_shard(job: Job, params: Array, tables: dict[str, Array]) -> Shard:
    """A shard of the given parameters."""
    options = job.config.server
    optimizer = optim.make(job.config.optimizer, job.kernels, job.threads)
    delay: Delay = Undelayed()
    if options.delay == "scale":
        delay = Scaled()
    if options.delay == "compensate":
        if tables:
            raise ConfigError("server.delay = 'compensate' is for dense parameters; this model has tables; use 'scale'")
        delay = Compensated(job.roles.workers, options.compensation)
    return Shard(
        params, optimizer, decoder(job), Merger(job.kernels), job.order, job.gradient_scale, tables, delay=delay
    )
