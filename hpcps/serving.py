"""Shards, and the ways to them, put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from hpcps import optim, report
from hpcps.comm import codes
from hpcps.comm.codes import Code
from hpcps.comm.memory import Memory
from hpcps.comm.transport import Array
from hpcps.device import Gpu
from hpcps.errors import ConfigError
from hpcps.exchange import ServerExchange
from hpcps.first import BLOCK, Begins, FirstRows
from hpcps.job import Job
from hpcps.models import Model
from hpcps.params import Params
from hpcps.rows import Merger, PulledRows, RowSource
from hpcps.server.backup import BackupShard
from hpcps.server.client import Client
from hpcps.server.delay import Compensated, Delay, Scaled, Undelayed
from hpcps.server.direct import DirectClient
from hpcps.server.filters import RowFilter
from hpcps.server.messages import COPY_TAGS
from hpcps.server.remote import RemoteClient
from hpcps.server.replica import Replication
from hpcps.server.serve import AsTheyCome, Server, Turns
from hpcps.server.sharding import Roles, roles, shard_slices
from hpcps.server.shown import Viewer
from hpcps.server.store import Shard
from hpcps.server.table import Table
from hpcps.server.turns import Recorded, file_name
from hpcps.server.turns import load as load_turns
from hpcps.snapshot import Pieces, Snapshot
from hpcps.staging import StagedRows, StagedServer
from hpcps.sums import Decoder, Sum
from hpcps.tensors import Stored

Keep = Callable[[str, bytes], None]
"""Puts a file of this name and content into the run's folder."""
KeepPieces = Callable[[int, int, Pieces], None]
"""Keeps what a shard, by its number, has of the run's state after so many steps, as it is now."""


class Shared(NamedTuple):
    """What workers and shards of one node have together, instead of sending it."""

    memory: Memory
    gradient: Array
    """Of the dense parameters, for this rank's sum: the shards read it"""
    begin: Array | None
    """The dense parameters as they begin, which stay so; None: each rank has parameters of its own"""


class Held(NamedTuple):
    """The parameters of a model: those that every worker holds, and the tables that are on shards."""

    params: Params
    elsewhere: Mapping[str, FirstRows]
    """How the rows of the tables on shards begin"""
    rows: PulledRows | None
    """Where rows of theirs are once they have been pulled"""
    shared: Shared | None = None
    """With the shards, which then update ``params`` themselves"""
    letters: Memory | None = None
    """By which keys and rows need not travel inside a node"""
    snapshot: Snapshot | None = None
    """Where the run goes on from; ``params`` do already"""
    host: Array | None = None
    """What shards exchange in the place of the dense ``params``, where these are on a GPU"""

    @property
    def flat(self) -> Array:
        """The dense parameters in the host's memory."""
        return self.params.flat if self.host is None else self.host

    @property
    def size(self) -> int:
        """How many numbers there are in all."""
        return len(self.params.flat) + sum(math.prod(first.shape) for first in self.elsewhere.values())

    def stored_elsewhere(self) -> dict[str, Stored]:
        """The tables on shards, as they are pulled block by block. Between steps alone."""
        return {
            name: Stored(self.params.flat.dtype, first.shape, partial(self._pulled, name, first.shape[0]))
            for name, first in self.elsewhere.items()
        }

    def _pulled(self, name: str, count: int) -> Iterator[Array]:
        assert self.rows is not None
        for start in range(0, count, BLOCK):
            keys = np.arange(start, min(start + BLOCK, count))
            self.rows.fetch({other: keys if other == name else keys[:0] for other in self.elsewhere})
            yield self.rows.rows(name, keys)


def hold(job: Job, model: Model, rng: np.random.Generator) -> Held:
    """The first parameters of a model, the same on every rank. Tables are on shards wherever there are shards for them,
    and there a row takes memory when its key first comes up."""
    _check_filters(job, model)
    if not model.tables or not job.rows_on_shards:
        return Held(model.init(rng), {}, None)
    first = cast(Begins, model).first(rng)
    widths = {name: rows.width for name, rows in first.tables.items()}
    return Held(first.dense, first.tables, PulledRows(widths, first.dense.flat.dtype, job.kernels))


def _check_filters(job: Job, model: Model) -> None:
    """Raise ConfigError where rows are to be kept back and there are none, or none that are pushed."""
    options = job.config.server
    if not (options.threshold or options.kkt):
        return
    key = "threshold" if options.threshold else "kkt"
    if not model.tables:
        raise ConfigError(f"server.{key} is for rows of tables, and this model has none; use compress.kind")
    if not job.rows_on_shards:
        raise ConfigError(f"server.{key}: one worker alone pushes no rows; use train.strategy = 'server'")


def share_with_shards(job: Job, held: Held) -> Held:
    """The same with dense parameters in memory that workers and shards have together, so that what a shard updates is
    fresh at every worker, and memory for gradients; where there can be. A collective of all ranks.

    It takes one node, and steps of which each is added up: then parameters change only while all workers wait. Where
    shards go on without late workers, these still read them: then gradients alone are where all see them, which a
    worker does not change before each shard has answered that it needs them no more. And with memory by which keys and
    rows go to shards of the same node, and from there.
    """
    if held.elsewhere and job.transport.size > 1 and job.transport.memory.is_shared:
        held = held._replace(letters=job.transport.memory)
    params, is_server = held.params, job.strategy == "server" and job.roles.servers > 0
    travels = job.config.train.reproducible or job.config.compress.kind != "none" or job.takes_over
    if not is_server or job.slack != 0 or travels or not len(params.flat):
        return held
    memory, dtype = job.transport.memory, params.flat.dtype
    if job.config.train.backup:
        if len(memory.nodes) > 1 or not memory.is_shared:
            return held
        return held._replace(shared=Shared(memory, job.transport.empty(len(params.flat), dtype), None))
    common = memory.common(len(params.flat), dtype) if len(memory.nodes) == 1 else None
    if common is None:
        return held
    if job.transport.rank == 0:
        common[:] = params.flat
    gradient = job.transport.empty(len(params.flat), dtype)
    job.transport.barrier()
    return held._replace(params=params.on(common), shared=Shared(memory, gradient, params.flat))


def go_on(held: Held, snapshot: Snapshot) -> Held:
    """The parameters as they are in a snapshot, also of the tables that every worker holds. Raises CheckpointError."""
    params = held.params
    snapshot.fill(params.dense.flat, "parameters")
    for name in params.tables:
        table = params.table(name)
        for block in snapshot.rows_of(name, table):
            table[block.keys] = block.columns["rows"]
    return held._replace(snapshot=snapshot)


def decoder(job: Job) -> Decoder:
    """How summed gradients travel."""
    return Decoder(job.config.train.reproducible, job.config.train.dtype, job.kernels)


def make_server_exchange(job: Job, held: Held, gradients: Sum, keep: Keep, keep_pieces: KeepPieces) -> ServerExchange:
    """Gradients to shards, parameters from them."""
    options = job.config.server
    shards = job.roles.servers or options.count
    client = _make_client(job, job.roles, held, shard_slices(len(held.flat), shards), keep, keep_pieces)
    where = "of all ranks" if job.roles.are_colocated else "alone" if job.roles.servers else "of this process"
    staleness = f"staleness {options.staleness}" if isinstance(options.staleness, int) else "asynchronous"
    code = _make_code(job)
    coded = f" as {code.name}" if code is not None and job.roles.servers else ""
    backup = job.config.train.backup
    through = ", in the node's memory" if held.shared is not None else ""
    if held.shared is not None and held.shared.begin is None:
        through = ", gradients in the node's memory"
    if backup:
        staleness += f", without the {f'{backup} latest workers' if backup > 1 else 'latest worker'} of a step"
    filtered = _filtered(job)
    way = f"push{coded}{filtered} to {shards} shard{'s' * (shards > 1)} {where}, pull from there{through}; {staleness}"
    how = way, job.slack, options.warmup_steps, _make_row_filter(job, held), job.roles.workers
    rest = client, gradients, Merger(job.kernels), *how
    if isinstance(job.device, Gpu):
        place = None if held.shared is None else held.shared.gradient
        return StagedServer(job.device, (held.params.flat, held.flat), place, *rest)
    return ServerExchange(*rest)


def make_row_exchange(job: Job, held: Held, gradients: Sum, keep_pieces: KeepPieces) -> ServerExchange:
    """Rows of tables to shards of all ranks, and from them, beside dense parameters that are all-reduced."""
    ranks = job.roles.workers
    everywhere = roles(ranks, ranks, colocated=True)
    client = _make_client(job, everywhere, held, [slice(0, 0)] * ranks, lambda name, content: None, keep_pieces)
    way = f"push{_filtered(job)} to shards of all ranks, pull from there"
    rest, row_filter = (client, gradients, Merger(job.kernels), way), _make_row_filter(job, held)
    if isinstance(job.device, Gpu):
        return StagedServer(job.device, None, None, *rest, row_filter=row_filter)
    return ServerExchange(*rest, row_filter=row_filter)


def row_source(job: Job, held: Held) -> RowSource | None:
    """Where a worker's rows are, of tables on shards; None where every worker holds the tables."""
    if held.rows is None or not isinstance(job.device, Gpu):
        return held.rows
    return StagedRows(held.rows, job.device)


def _filtered(job: Job) -> str:
    """In a few words which rows are kept back."""
    options = job.config.server
    said = [f"{name} {value:g}" for name, value in (("threshold", options.threshold), ("kkt", options.kkt)) if value]
    return f" ({', '.join(said)})" if said else ""


def _make_row_filter(job: Job, held: Held) -> RowFilter | None:
    """What keeps rows back, if something does: both limits are of mean gradients, and the second is of all workers."""
    options = job.config.server
    if held.rows is None or not (options.threshold or options.kkt):
        return None
    zero_threshold = options.kkt * job.config.optimizer.l1 / job.roles.workers
    limits = options.threshold / job.gradient_scale, zero_threshold / job.gradient_scale
    return RowFilter(held.rows, *limits, job.kernels)


def make_server(
    job: Job, held: Held, where: slice, number: int, shards: int, keep: Keep, keep_pieces: KeepPieces
) -> Server:
    """Shard ``number`` of ``shards``, which holds ``where`` of the dense parameters, those that are shared themselves,
    and what serves it. ``keep`` takes its record, if there is to be one, ``keep_pieces`` its state for a checkpoint."""
    dense = held.flat[where]
    is_shared = held.shared is not None and held.shared.begin is not None
    near = [] if held.letters is None else held.letters.nodes[held.letters.node]
    visible = held.letters if _are_shown(job) and min(near, default=job.roles.workers) < job.roles.workers else None
    shard = _make_shard(job, dense if is_shared else dense.copy(), held.elsewhere, visible)
    _go_on(shard, held, where, shards, number)
    workers, options = range(job.roles.workers), job.config.server

    def keep_state() -> None:
        keep_pieces(number, min(shard.clocks), shard.pieces(where.start, shards, number))

    turns: Turns = AsTheyCome()
    if options.record:
        turns = Recorded(lambda record: keep(file_name(number), record))
    if options.replay:
        turns = load_turns(Path(options.replay), number, len(workers))
    memory = None if held.shared is None else held.shared.memory
    replication = _make_replication(job, held, shard, number, keep_pieces) if options.replicas else None
    rest = workers, decoder(job), job.order.counts, turns, memory, job.slack != 0, replication, _make_code(job)
    return Server(job.transport, shard, number, *rest, held.letters, keep_state)


def _go_on(shard: Shard, held: Held, where: slice, shards: int, number: int) -> None:
    if held.snapshot is not None:
        shard.restore(held.snapshot, where.start, shards, number)


def _make_replication(job: Job, held: Held, shard: Shard, number: int, keep_pieces: KeepPieces) -> Replication:
    """A copy of the shard before this one, which is served when that is lost, and the way to the one behind."""
    shards = job.roles.servers
    before, behind = (number - 1) % shards, (number + 1) % shards
    where = shard_slices(len(held.flat), shards)[before]
    begin = held.flat
    if held.shared is not None and held.shared.begin is not None:
        begin = held.shared.begin  # the shard may be at work already
    copy = _make_shard(job, begin[where].copy(), held.elsewhere)
    _go_on(copy, held, where, shards, before)
    leader, follower = job.roles.server_rank(before), job.roles.server_rank(behind)

    def keep_state() -> None:
        keep_pieces(before, min(copy.clocks), copy.pieces(where.start, shards, before))

    def take_over(copy: Shard) -> Server:
        lost, mine = (job.transport.numbers[rank] for rank in (leader, job.transport.rank))
        report.warn(f"rank {lost} lost; rank {mine} goes on with its copy of shard {before}")
        workers = range(job.roles.workers)
        for worker in workers:
            copy.seen(worker)
        rest = workers, decoder(job), job.order.counts, None, None, job.slack != 0, None, _make_code(job)
        return Server(job.transport, copy, before, *rest, held.letters, keep_state, COPY_TAGS)

    return Replication(job.transport, number, shard, copy, leader, follower, take_over if job.takes_over else None)


def _make_client(
    job: Job, planned: Roles, held: Held, where: list[slice], keep: Keep, keep_pieces: KeepPieces
) -> Client:
    """The way to the shards, of which number s has ``where[s]`` of the dense parameters: on their ranks, or, for a rank
    alone, in its own process."""
    dense, rank = held.flat, job.transport.rank
    if not planned.servers:
        tables = [held.elsewhere if number == 0 else {} for number in range(len(where))]
        shards = [_make_shard(job, dense[part], own) for part, own in zip(where, tables, strict=True)]
        return DirectClient(shards, where, held.rows)
    ranks = [planned.server_rank(shard) for shard in range(len(where))]
    server = None
    if planned.are_colocated:
        number = ranks.index(rank)
        server = make_server(job, held, where[number], number, len(ranks), keep, keep_pieces)
    memory = None if held.shared is None else held.shared.memory
    copies = [planned.server_rank((shard + 1) % len(ranks)) for shard in range(len(ranks))] if job.takes_over else []
    rest = decoder(job), server, memory, _make_code(job), held.letters, job.roles.workers, copies
    viewer = None
    if held.letters is not None and _are_shown(job):
        viewer = Viewer(held.elsewhere, held.params.flat.dtype, job.kernels, held.letters)
    return RemoteClient(job.transport, dense, held.rows, where, ranks, rank, *rest, viewer)


def _are_shown(job: Job) -> bool:
    """Whether workers may look at the tables of shards on their node: rows may not change while they do."""
    return job.slack == 0 and not job.config.train.backup


def _make_code(job: Job) -> Code | None:
    """What gradients are pushed as, if not as they are."""
    compress = job.config.compress
    if job.strategy != "server" or compress.kind == "none":
        return None
    return codes.make(compress.kind, compress.block, compress.fraction, job.config.train.dtype, job.kernels)


def _make_shard(job: Job, params: Array, tables: Mapping[str, FirstRows], visible: Memory | None = None) -> Shard:
    """A shard of these dense parameters and of tables that begin so. ``visible``: memory by which others see rows."""
    options, dtype = job.config.server, job.config.train.dtype
    optimizer = optim.make(job.config.optimizer, job.kernels, job.threads)
    delay: Delay = Undelayed()
    if options.delay == "scale":
        delay = Scaled()
    if options.delay == "compensate":
        if tables:
            raise ConfigError("server.delay = 'compensate' is for dense parameters; this model has tables; use 'scale'")
        delay = Compensated(job.roles.workers, options.compensation)
    stored = {
        name: Table(
            first,
            dtype,
            optimizer,
            job.kernels,
            admit_after=options.admit_after,
            tracks_use=options.evict_after > 0,
            threads=job.threads,
            memory=visible,
        )
        for name, first in tables.items()
    }
    rest = optimizer, decoder(job), Merger(job.kernels), job.order, job.gradient_scale, stored
    backup, samples = job.config.train.backup, job.parts.by_worker
    if backup:
        return BackupShard(params, *rest, samples=samples, backup=backup, evict_after=options.evict_after)
    return Shard(params, *rest, delay=delay, evict_after=options.evict_after)
