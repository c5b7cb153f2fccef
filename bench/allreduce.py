"""All-reduce inside a node, beside MPI_Allreduce, gloo and a memcpy of the same size.

    python bench/allreduce.py --openmpi-python A/bin/python --mpich-python B/bin/python --torch-python C/bin/python

Started without a launcher: each contender runs in a job of its own, ``--ranks`` processes, and in every round they take
turns, some sizes at a time, so that a machine whose speed drifts is fair to all. What is called is ``hpcps.allreduce``
of an array of ``transport.empty`` and of a plain NumPy array, ``MPI_Allreduce`` in place, by default and with the
settings of ``peers/allreduce_jobs.py``, gloo's ``all_reduce``, and ``np.copyto`` on all ranks at the same time. Arrays
take turns and are filled anew before each call, a barrier comes before it, and every element is verified after it; its
time is that of the slowest rank. Times are medians of all rounds' calls. Bandwidths are those of nccl-tests:
algbw = size / time, busbw = algbw 2(P - 1)/P; the memcpy's are those of an all-reduce that takes as long. The two MPI
libraries and torch live in environments of their own; a peer without one is said to be missing.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import allreduce_table as table
import numpy as np
from common import write_json
from peers.allreduce_jobs import TUNED, Job, JobError, jobs, mpi_library

DTYPES = ("float32", "float64", "int64")
GROUP = 6
"""Sizes that a contender measures in one go."""
OWN = ("hpcps", "hpcps, plain arrays", "memcpy")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--sizes", default="4K-256M", help="bytes: 4K-256M doubles from one to the other; or 4K,1M")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="contenders whose names contain one of these, as in hpcps,memcpy")
    parser.add_argument("--python", default=sys.executable, help="interpreter of hpcps, memcpy and the MPI that it has")
    parser.add_argument("--openmpi-python", default="", help="interpreter with mpi4py and Open MPI")
    parser.add_argument("--mpich-python", default="", help="interpreter with mpi4py and MPICH")
    parser.add_argument("--torch-python", default="", help="interpreter with torch")
    parser.add_argument("--markdown", action="store_true", help="one table of times, as in docs/ALLREDUCE.md")
    parser.add_argument("--json", type=Path)
    found = parser.parse_args()
    try:
        found.sizes = sizes_of(found.sizes)
    except ValueError as error:
        parser.error(f"--sizes: {error}")
    if min(found.sizes) < 1 or any(size % np.dtype(found.dtype).itemsize for size in found.sizes):
        parser.error(f"--sizes: not whole elements of {found.dtype}")
    if found.ranks < 2 or found.rounds < 1:
        parser.error("--ranks is 2 or more, --rounds 1 or more")
    return found


def sizes_of(words: str) -> list[int]:
    """Bytes, from ``4K-16K`` (doubling) and ``4K,1M``.

    >>> sizes_of("1K-4K,12")
    [1024, 2048, 4096, 12]
    """
    found = []
    for word in words.split(","):
        first, _, last = word.partition("-")
        size, end = bytes_of(first), bytes_of(last or first)
        if not 0 < size <= end:
            raise ValueError(f"{word}: not a size, nor a range of sizes from small to large")
        while size <= end:
            found.append(size)
            size *= 2
    return found


def bytes_of(word: str) -> int:
    """``"4K"`` is 4096."""
    word = word.strip()
    return int(word[:-1]) * UNITS[word[-1]] if word[-1:] in UNITS else int(word)


def contenders(chosen: argparse.Namespace) -> list[Job]:
    """Those that were asked for; ``--python`` serves for the MPI library that it has."""
    own = {"Open MPI": chosen.openmpi_python, "MPICH": chosen.mpich_python}
    try:
        library = next(name for name in own if name in mpi_library(chosen.python))
        own[library] = own[library] or chosen.python
    except (JobError, StopIteration) as error:
        print(f"{chosen.python} has neither Open MPI nor MPICH: {error}", file=sys.stderr)
    found = jobs(chosen.python, own["Open MPI"], own["MPICH"], chosen.torch_python)
    return [job for job in found if any(word in job.name for word in chosen.only.split(","))]


def run(chosen: argparse.Namespace, found: list[Job]) -> table.Figures:
    """All rounds. The contenders' order turns, so that each follows each."""
    figures = table.Figures()
    groups = [chosen.sizes[first : first + GROUP] for first in range(0, len(chosen.sizes), GROUP)]
    for number in range(chosen.rounds):
        first = number % len(found)
        for group in groups:
            for job in found[first:] + found[:first]:
                if job.name not in figures.missing:
                    told = f"{job.name}, {table.short(group[0])} to {table.short(group[-1])}"
                    print(f"round {number + 1}/{chosen.rounds}: {told}", file=sys.stderr, flush=True)
                    once(figures, job, group, chosen)
    figures.by_case = {job.name: figures.by_case[job.name] for job in found if job.name in figures.by_case}
    figures.choose_tuned(TUNED)
    return figures


def once(figures: table.Figures, job: Job, sizes: list[int], chosen: argparse.Namespace) -> None:
    """One job; a contender that fails is out."""
    try:
        figures.add(job.name, chosen.dtype, job.run(chosen.ranks, sizes, chosen.dtype))
    except JobError as error:
        figures.lose(job.name, str(error))


def main() -> int:
    """Exit status 1 if an element is wrong, or if hpcps or the memcpy did not run."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that it ends the job under way
    chosen = options()
    found = contenders(chosen)
    if not found:
        print(f"--only {chosen.only}: no such contender", file=sys.stderr)
        return 2
    figures = run(chosen, found)
    print(*(table.markdown if chosen.markdown else table.text)(figures), "", sep="\n")
    print(*table.summary(figures, chosen.ranks), sep="\n")
    if chosen.json:
        more = {"ranks": chosen.ranks, "rounds": chosen.rounds, "about": figures.about}
        more["summary"] = figures.summary(chosen.ranks)
        write_json(chosen.json, ("hpcps", "numpy", "numba", "mpi4py"), figures.rows(), **more)
    failed = [f"{name}: {why}" for name, why in figures.missing.items() if name in OWN]
    wrong = [f"{figures.wrong} wrong elements"] if figures.wrong else []
    print(*failed, *wrong, sep="\n", file=sys.stderr)
    return 1 if failed or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
