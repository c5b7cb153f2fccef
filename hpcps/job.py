"""What a rank knows of its job before any data is read: its role, its threads, its parts of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hpcps_kernels

from hpcps import device, machine, models, nccl, parts
from hpcps.comm.meeting import Meeting
from hpcps.comm.order import Order, in_turn, order
from hpcps.comm.topology import chunk_bounds
from hpcps.comm.transport import Transport
from hpcps.config import Config
from hpcps.device import Device
from hpcps.errors import ConfigError
from hpcps.parts import Parts
from hpcps.server.messages import UNBOUNDED
from hpcps.server.sharding import Roles, roles
from hpcps.together import Together, agree

TEST_BLOCKS = 64
"""Into how many blocks the held-out samples are cut, whatever the rank count."""


@dataclass(frozen=True)
class Job:
    """What a rank knows of the job before any data is read."""

    config: Config
    transport: Transport
    together: Together
    kernels: Any
    """Of the host"""
    device: Device
    """Where a worker computes"""
    strategy: str
    why: str
    roles: Roles
    workers: Transport | None
    """The workers among themselves; None on a server rank."""
    parts: Parts
    threads: int
    crowded: bool
    """Whether this node has more ranks than cores."""
    neighbours: int
    """How many ranks this node has."""
    nodes: tuple[str, ...]
    """The name of each rank's node."""
    rows_on_shards: bool = False
    """Whether rows of tables, if there are any, are on shards: in a server run, or beside all-reduced parameters"""
    takes_over: bool = False
    """Whether the run goes on as it is when a rank with nothing but a shard is lost: its copy is served then"""
    sums_by_nccl: bool = False
    """Whether dense gradients are summed from GPU to GPU"""

    @property
    def order(self) -> Order:
        """In which order the workers' gradients are added, where one rank adds all of them."""
        return order(self.parts.ranges) if self.config.train.reproducible else in_turn(self.roles.workers)

    @property
    def gradient_scale(self) -> float:
        """What makes a mean of a batch's sum."""
        return 1.0 / self.config.train.batch

    @property
    def slack(self) -> int:
        """How many steps of other workers a worker's parameters may miss; -1: any number."""
        staleness = self.config.server.staleness
        return UNBOUNDED if staleness == "async" else staleness

    def test_ranges(self) -> list[int]:
        """The held-out blocks of each worker."""
        return chunk_bounds(TEST_BLOCKS, self.roles.workers)


def prepare(transport: Transport, config: Config) -> Job:
    """Roles, threads and parts. A collective."""
    together = Meeting(transport)
    seats = machine.seats(together, transport.node)
    crowded = machine.crowded(seats, transport.rank)
    transport.crowded(crowded)
    strategy, why = choose_strategy(config)
    servers = config.server.count if strategy == "server" else 0

    kernels = hpcps_kernels.load("cpu")

    def plan() -> tuple[Roles, Parts, Device]:
        models.check_kind(config.model.kind)
        nodes = len({seat.node for seat in seats})
        if strategy == "online" and nodes > 1:
            raise ConfigError(f"train.strategy = 'online' is for the ranks of one node; these are on {nodes}")
        planned = roles(transport.size, servers, config.server.colocated)
        if config.server.replicas and planned.servers < 2:
            raise ConfigError(
                "server.replicas = 1 needs shards on two ranks: use server.count = 2 or more, or server.colocated"
            )
        check_backup(config.train.backup, planned.workers)
        worker = min(transport.rank, planned.workers - 1)  # a server looks at the last worker's plan
        mine = cut(config, [threads(rank) for rank in range(planned.workers)], worker)
        has_gpu = config.run.device == "cuda" and transport.rank < planned.workers
        return planned, mine, open_gpu() if has_gpu else device.of(kernels)

    def threads(rank: int) -> int:
        if config.run.device == "cuda":
            return 1
        return config.run.threads or machine.threads(seats, rank)

    def open_gpu() -> Device:
        return device.open_gpu(*machine.place(seats, transport.rank))

    planned, mine, here = agree(together, plan)
    is_worker = transport.rank < planned.workers
    workers = transport.group(range(planned.workers)) if is_worker else None
    return Job(
        config=config,
        transport=transport,
        together=together,
        kernels=kernels,
        device=here,
        strategy=strategy,
        why=why,
        roles=planned,
        workers=workers,
        parts=mine,
        threads=threads(transport.rank),
        crowded=crowded,
        neighbours=machine.neighbours(seats, transport.rank),
        nodes=tuple(seat.node for seat in seats),
        rows_on_shards=strategy == "server",
        takes_over=takes_over(config, planned) and transport.spare(range(planned.workers, transport.size)),
        sums_by_nccl=nccl.choose(config, strategy, together, here, transport.node),
    )


def takes_over(config: Config, planned: Roles) -> bool:
    """Whether copies of shards are to be served when their ranks are lost. Not where such a rank is a worker's, too,
    nor where it is told in the end in which order workers came, or for which step too late: a copy does not know."""
    options = config.server
    is_copied = options.replicas > 0 and planned.servers > 0 and not planned.are_colocated
    return config.run.survive and is_copied and not (config.train.backup or options.record or options.replay)


def check_backup(backup: int, workers: int) -> None:
    """Raise ConfigError where a step would need no worker.

    >>> check_backup(1, 2)
    """
    if backup >= workers:
        most = f"use at most {workers - 1}" if workers > 1 else "use 0, or more ranks"
        raise ConfigError(
            f"train.backup = {backup} with {workers} worker{'s' * (workers > 1)}: a step needs a gradient; {most}"
        )


def choose_strategy(config: Config) -> tuple[str, str]:
    """The strategy, and why. Where rows of tables are with "auto": see ``hpcps/trial.py``."""
    if config.train.strategy == "auto":
        return "ring", "dense parameters are all-reduced"
    return config.train.strategy, "as configured"


def cut(config: Config, threads: list[int], worker: int) -> Parts:
    """The parts of a batch: grains if the run is reproducible, else one a thread. Raises ConfigError."""
    batch = config.train.batch
    if config.train.reproducible:
        return parts.grains(batch, config.train.grains, worker, len(threads))
    return parts.by_threads(batch, threads, worker)
