"""Which cores the ranks of a job may use, and what follows from it: threads a rank, and whether ranks share cores."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpcps.together import Together


@dataclass(frozen=True)
class Seat:
    """Where one rank runs: its node, the numbers of the cores it may use, and its process."""

    rank: int
    node: str
    cores: tuple[int, ...]
    process: int


def seats(together: Together, node: str) -> list[Seat]:
    """Every rank's seat, in rank order. A collective."""
    mine = json.dumps([node, sorted(os.sched_getaffinity(0)), os.getpid()]) + "\n"
    told = together.gather(np.frombuffer(mine.encode(), np.uint8)).tobytes().decode().splitlines()
    rows = [json.loads(line) for line in told]
    return [Seat(rank, name, tuple(cores), process) for rank, (name, cores, process) in enumerate(rows)]


def threads(seats: Sequence[Seat], rank: int) -> int:
    """The threads that a rank may run: its cores, shared with the ranks of its node that have the very same ones.

    >>> threads([Seat(0, "a", (0, 1, 2, 3), 10), Seat(1, "a", (0, 1, 2, 3), 11)], 0)
    2
    """
    mine = seats[rank]
    sharing = sum(seat.node == mine.node and seat.cores == mine.cores for seat in seats)
    return max(1, len(mine.cores) // sharing)


def crowded(seats: Sequence[Seat], rank: int) -> bool:
    """Whether this rank must share a core: the ranks of its node, or those bound to its very cores, outnumber them.

    >>> crowded([Seat(0, "a", (0,), 10), Seat(1, "a", (0,), 11), Seat(2, "a", (1, 2), 12)], 1)
    True
    """
    mine = seats[rank]
    near = [seat for seat in seats if seat.node == mine.node]
    together = [seat for seat in near if seat.cores == mine.cores]
    return len(near) > len({core for seat in near for core in seat.cores}) or len(together) > len(mine.cores)


def neighbours(seats: Sequence[Seat], rank: int) -> int:
    """How many ranks this rank's node has, itself included."""
    return sum(seat.node == seats[rank].node for seat in seats)


def place(seats: Sequence[Seat], rank: int) -> tuple[int, int]:
    """The number of a rank among those of its node, and how many these are.

    >>> [place([Seat(0, "a", (0,), 1), Seat(1, "b", (0,), 1), Seat(2, "a", (1,), 2)], rank) for rank in range(3)]
    [(0, 2), (0, 1), (1, 2)]
    """
    near = [seat.rank for seat in seats if seat.node == seats[rank].node]
    return near.index(rank), len(near)


def nodes(seats: Sequence[Seat]) -> int:
    """On how many nodes the ranks run."""
    return len({seat.node for seat in seats})


def peak_memory_mib() -> int:
    """The most memory that this process has had, in MiB; that of all ranks where they are threads of it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10  # Linux counts KiB
