"""One rank of one contender of ``bench/allreduce.py``, which starts it.

Every contender runs this file, so that all fill, verify and time alike; it needs NumPy and what the contender itself
needs (hpcps, mpi4py or torch). Before each call the rank fills the next of several arrays in turn with values whose
total over the ranks is known, and meets the others at a barrier; after it, it counts the elements that are wrong. The
seconds of each call go into ``FOLDER/RANK.json``: a call takes as long as its slowest rank. ``FOLDER/ending`` holds an
int64 of zero when the ranks are started.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]

TIMEOUT_S = 120
SERIES_S = 2.0
ENDING = "ending"
FIRST_CALLS = 20
"""Calls of a small array before anything is timed: MPICH changes its algorithm after the first five."""
ALIGNMENT_BYTES = 64
ARRAYS_BYTES, ARRAYS_MIN, ARRAYS_MAX = 16 << 20, 2, 8
CALLS_BYTES, CALLS_MIN, CALLS_MAX = 256 << 20, 3, 300
TILE = np.random.default_rng(0).integers(0, 16, 4093)
"""An array is filled with copies of this: a prime length, so that a chunk in a wrong place shows, and small integers,
so that sums are exact in every dtype."""


@dataclass(frozen=True)
class Slot:
    """One of the arrays that take turns: what ``call`` reads and where it leaves its result."""

    given: Array
    result: Array
    call: Callable[[], object]


class Contender(Protocol):
    """A way to sum arrays over the ranks."""

    rank: int
    size: int
    about: str

    def barrier(self) -> object:
        """Block until every rank has come."""

    def slot(self, count: int, dtype: str) -> Slot:
        """An array of (count,) and the call that sums it in place. A collective."""

    def total(self, tile: Array) -> Array:
        """What is left of ``tile``, which rank 0 has once, rank 1 twice, and so on."""


class Summing:
    """The total of an all-reduce."""

    rank: int
    size: int

    def total(self, tile: Array) -> Array:
        return tile * (self.size * (self.size + 1) // 2)


class Mpi(Summing):
    """``MPI_Allreduce``, in place."""

    def __init__(self) -> None:
        import mpi4py

        mpi4py.rc.thread_level = "serialized"  # as hpcps asks for: locks inside MPI cost time
        from mpi4py import MPI

        self.comm = MPI.COMM_WORLD
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        self.in_place = MPI.IN_PLACE
        self.barrier = self.comm.Barrier
        first = MPI.Get_library_version().replace("\x00", "").split("\n")[0].split(",")[0]
        self.about = " ".join(first.replace("Version:", "").split())

    def slot(self, count: int, dtype: str) -> Slot:
        x = aligned(count, dtype)
        return Slot(x, x, partial(self.comm.Allreduce, self.in_place, x))


class Hpcps(Mpi):
    """``hpcps.allreduce`` of arrays of its transport."""

    def __init__(self) -> None:
        import hpcps

        self.transport = hpcps.world(TIMEOUT_S)
        self.allreduce = hpcps.allreduce
        super().__init__()
        self.transport.crowded(self.size > len(os.sched_getaffinity(0)))

    def slot(self, count: int, dtype: str) -> Slot:
        x = self.transport.empty(count, dtype)
        return Slot(x, x, partial(self.allreduce, x, self.transport))


class HpcpsPlain(Hpcps):
    """``hpcps.allreduce`` of any array."""

    def slot(self, count: int, dtype: str) -> Slot:
        x = np.empty(count, dtype)
        return Slot(x, x, partial(self.allreduce, x, self.transport))


class Memcpy(Mpi):
    """A copy of the array on every rank at the same time: the memory's limit."""

    def total(self, tile: Array) -> Array:
        return tile * (self.rank + 1)

    def slot(self, count: int, dtype: str) -> Slot:
        x, copied = aligned(count, dtype), aligned(count, dtype)
        return Slot(x, copied, partial(np.copyto, copied, x))


class Gloo(Summing):
    """``torch.distributed.all_reduce`` on gloo. RANK, WORLD_SIZE and STORE, a file, are in the environment."""

    def __init__(self) -> None:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = f"file://{os.environ['STORE']}"
        dist.init_process_group("gloo", store, timedelta(seconds=TIMEOUT_S), self.size, self.rank)
        atexit.register(dist.destroy_process_group)  # else its threads may end the process with SIGABRT
        self.tensor, self.allreduce, self.barrier = torch.from_numpy, dist.all_reduce, dist.barrier
        self.about = f"PyTorch {torch.__version__}"

    def slot(self, count: int, dtype: str) -> Slot:
        x = aligned(count, dtype)
        return Slot(x, x, partial(self.allreduce, self.tensor(x)))


CONTENDERS: dict[str, Callable[[], Contender]] = {
    "hpcps": Hpcps,
    "hpcps-plain": HpcpsPlain,
    "mpi": Mpi,
    "gloo": Gloo,
    "memcpy": Memcpy,
}


def aligned(count: int, dtype: str) -> Array:
    """An uninitialised array of (count,) that starts at a cache line."""
    size_bytes = count * np.dtype(dtype).itemsize
    raw = np.empty(size_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + size_bytes].view(dtype)


def cut(x: Array) -> tuple[Array, Array]:
    """``x`` as rows of a tile's length, and the rest."""
    end = len(x) // len(TILE) * len(TILE)
    return x[:end].reshape(-1, len(TILE)), x[end:]


def fill(x: Array, tile: Array) -> None:
    """Overwrite ``x`` with copies of ``tile``; nothing but the tile is read, so that ``x`` alone fills the cache."""
    rows, rest = cut(x)
    rows[...] = tile
    rest[...] = tile[: len(rest)]


def wrong(x: Array, tile: Array) -> int:
    """How many elements of ``x`` differ from copies of ``tile``."""
    rows, rest = cut(x)
    return int(np.count_nonzero(rows != tile) + np.count_nonzero(rest != tile[: len(rest)]))


class Ending:
    """Ends a series of calls early, before the same call on all ranks: rank 0 looks at the clock, and names the call in
    a word that all share, before that call's barrier. The call is named, for a rank may read the word late."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.word = np.memmap(folder / ENDING, np.int64, "r+")
        self.rank = rank
        self.series = 0

    def begin(self) -> None:
        """A new series."""
        self.series += 1
        self.deadline = time.monotonic() + SERIES_S

    def look(self, number: int) -> None:
        """Before the barrier of a call."""
        if self.rank == 0 and number >= CALLS_MIN and time.monotonic() > self.deadline:
            self.word[0] = self.series << 32 | number

    def reached(self, number: int) -> bool:
        """After that barrier: whether there is to be no such call."""
        series, last = divmod(int(self.word[0]), 1 << 32)
        return series == self.series and number >= last


def call(contender: Contender, slots: list[Slot], calls: int, ending: Ending) -> tuple[list[float], int]:
    """Fill, meet, call, verify, and again: the calls' seconds and all wrong elements, on this rank."""
    found, wrongs = [], 0
    ending.begin()
    for number in range(calls):
        slot = slots[number % len(slots)]
        tile = TILE + number % 4
        fill(slot.given, (tile * (contender.rank + 1)).astype(slot.given.dtype))
        ending.look(number)
        contender.barrier()
        if ending.reached(number):
            break
        begin = time.perf_counter()
        slot.call()
        found.append(time.perf_counter() - begin)
        wrongs += wrong(slot.result, contender.total(tile).astype(slot.result.dtype))
    return found, wrongs


def calls_of(size_bytes: int) -> int:
    """How often a size is called in one round, if there is time: less where it is large."""
    return max(CALLS_MIN, min(CALLS_MAX, CALLS_BYTES // size_bytes))


def measure(contender: Contender, size_bytes: int, dtype: str, ending: Ending) -> dict[str, object]:
    """One size: every array is called once before the calls that count."""
    arrays = max(ARRAYS_MIN, min(ARRAYS_MAX, ARRAYS_BYTES // size_bytes))
    slots = [contender.slot(size_bytes // np.dtype(dtype).itemsize, dtype) for _ in range(arrays)]
    _, wrong_at_first = call(contender, slots, arrays, ending)
    seconds, wrongs = call(contender, slots, calls_of(size_bytes), ending)
    return {"size": size_bytes, "seconds": seconds, "wrong": wrong_at_first + wrongs}


def main() -> None:
    """Measure all sizes and write what this rank saw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--contender", choices=CONTENDERS, required=True)
    parser.add_argument("--sizes", required=True, help="bytes, with commas in between")
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    contender = CONTENDERS[options.contender]()
    slot = contender.slot(min(sizes) // np.dtype(options.dtype).itemsize, options.dtype)
    ending = Ending(options.folder, contender.rank)
    call(contender, [slot], FIRST_CALLS, ending)
    rows = [measure(contender, size, options.dtype, ending) for size in sizes]
    told = {"rank": contender.rank, "ranks": contender.size, "about": contender.about, "rows": rows}
    (options.folder / f"{contender.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
