"""What each rank of ``wire.py`` does: all-reduces of given sizes in given ways, in turn, verified and timed.

``python wire_rank.py WAYS SIZES ROUNDS`` with names of :data:`WAYS` and bytes, both separated by commas. Rank 0 prints
one line of JSON: for each way and size the seconds of each round (of the slowest rank), the bytes that each host sent,
and how many elements were wrong.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import hpcps_kernels
import numpy as np

from hpcps.collectives.choice import Choice
from hpcps.collectives.engine import Engine
from hpcps.collectives.pending import Pending
from hpcps.comm import compressed, mpi, ring
from hpcps.comm.meeting import Meeting
from hpcps.comm.mpi import MpiTransport
from hpcps.comm.transport import Array

SENT = Path("/sys/class/net/eth0/statistics/tx_bytes")
TIMEOUT_S = 120.0
REST_S = 0.05
"""Between all-reduces, so that each begins with links that have rested."""


class Allreduce(Protocol):
    """A sum of ``x`` over the ranks, in place."""

    def start(self, x: Array) -> Pending: ...


class Library:
    """The MPI library's own all-reduce, which blocks when it is started."""

    name = "MPI_Allreduce"

    def __init__(self, transport: MpiTransport) -> None:
        from mpi4py import MPI

        self._call = lambda x: transport.comm.Allreduce(MPI.IN_PLACE, x, MPI.SUM)

    def start(self, x: Array) -> Library:
        self._call(x)
        return self

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        """It is finished."""


@dataclass(frozen=True)
class Way:
    """``build`` makes the all-reduce of so many float32 numbers; ``tolerance``: how far off it may be, of the largest
    sum."""

    build: Callable[[MpiTransport, int], Allreduce]
    tolerance: float = 0.0


KERNELS = hpcps_kernels.load("cpu")
WAYS = {
    "hpcps ring": Way(lambda transport, count: ring.RingAllreduce(transport, KERNELS.add_into)),
    "hpcps int8": Way(lambda transport, count: compressed.make("int8", transport, count, "float32", KERNELS), 0.03),
    "hpcps hierarchical": Way(lambda transport, count: Engine(transport, KERNELS, Choice("hierarchical"), True)),
    "MPI_Allreduce": Way(lambda transport, count: Library(transport)),
}


class Sums:
    """Arrays of one size: whole numbers, small enough that every sum is exact."""

    def __init__(self, meeting: Meeting, size_bytes: int) -> None:
        ranks = meeting.size
        self._meeting = meeting
        self._pattern = (np.arange(size_bytes // 4) % 1000).astype(np.float32)
        self._expected = self._pattern * ranks**2 + ranks * (ranks - 1) // 2
        self._x = meeting.transport.empty(len(self._pattern), np.float32)

    def once(self, allreduce: Allreduce, tolerance: float) -> tuple[float, list[int], int]:
        """(seconds of the slowest rank, bytes that each rank's host sent, elements that are wrong anywhere)."""
        transport, x = self._meeting.transport, self._x
        np.multiply(self._pattern, transport.size, out=x)
        x += transport.rank
        transport.barrier()
        time.sleep(REST_S)
        transport.barrier()
        sent, started = int(SENT.read_text()), time.perf_counter()
        allreduce.start(x).wait()
        seconds = time.perf_counter() - started
        transport.barrier()
        sent = int(SENT.read_text()) - sent
        x -= self._expected
        np.abs(x, out=x)
        wrong = np.count_nonzero(~(x <= tolerance * self._expected.max()))
        told = self._meeting.gather(np.array([seconds, sent, wrong])).reshape(-1, 3)
        return float(told[:, 0].max()), told[:, 1].astype(int).tolist(), int(told[:, 2].sum())


def main(names: list[str], sizes: list[int], rounds: int) -> None:
    """One round more, the first, is not told: it warms up."""
    transport = mpi.world(TIMEOUT_S)
    transport.crowded(True)  # the hosts share the cores of one machine
    meeting = Meeting(transport)
    found = []
    for size_bytes in sizes:
        ways = {name: WAYS[name].build(transport, size_bytes // 4) for name in names}
        sums = Sums(meeting, size_bytes)
        rows = [{"way": name, "size": size_bytes, "seconds": [], "sent": [], "wrong": 0} for name in names]
        for number in range(rounds + 1):
            for row in rows:
                seconds, sent, wrong = sums.once(ways[row["way"]], WAYS[row["way"]].tolerance)
                row["wrong"] += wrong
                if number > 0:
                    row["seconds"].append(seconds)
                    row["sent"].append(sent)
        found += rows
    if transport.rank == 0:
        print(json.dumps(found))
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1].split(","), [int(size) for size in sys.argv[2].split(",")], int(sys.argv[3]))
