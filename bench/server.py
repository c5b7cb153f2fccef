"""The parameter server on one machine, one worker and one shard: how long a push and a pull take.

    python bench/server.py --mpich-python B/bin/python --json server.json

Dense: a gradient is pushed and the parameters are pulled that contain it, through memory that both ranks see, and by
messages. Beside it, in the same run, the same bytes go there and back by blocking calls of mpi4py: what the MPI library
allows to whoever sends them, with nothing done. Sparse: 10,000 random rows of a table of 2**20, and pushes of rows
that nobody has pushed before. All cases in turn, each
round a job of its own; results are verified, and exit status 1 says that one is wrong.

``--ps-lite PROGRAM`` (``peers/ps_lite.cc``, compiled) does the same by ps-lite, in the same rounds. Other figures of
ps-lite's were measured earlier, on a machine of another kind.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from common import write_json
from peers import ps_lite
from peers.allreduce_jobs import JobError, environment, last_line, mpi_library, mpiexec

RANK = Path(__file__).with_name("server_rank.py")
PACKAGES = ("hpcps", "numpy", "numba", "mpi4py")
SIZES = "1024,65536,1048576,16777216,67108864"
WIDTHS = "1,16,64"
TIMEOUT_S = 300
PEER, PS_LITE = "mpi4py Send and Recv", "ps-lite"
PS_LITE_S = {
    ("push and pull", 1 << 10): 416e-6,
    ("push and pull", 1 << 20): 1.22e-3,
    ("push and pull", 16 << 20): 25.4e-3,
    ("push and pull", 64 << 20): 260e-3,
    ("sparse push, 1 wide", 120_000): 5.4e-3,
    ("sparse push, 16 wide", 720_000): 8.7e-3,
    ("sparse push, 64 wide", 2_640_000): 9.9e-3,
    ("sparse pull, 1 wide", 120_000): 1.0e-3,
    ("sparse pull, 16 wide", 720_000): 1.7e-3,
    ("sparse pull, 64 wide", 2_640_000): 7.0e-3,
}
"""Median of a push and of a pull added up, or of one of them; the least of what it took, where that varied."""

Case = tuple[str, str, int]
"""The MPI library, what is done, and with how many bytes"""


def options() -> argparse.Namespace:
    """What is asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="an interpreter with mpi4py and hpcps's dependencies")
    parser.add_argument("--mpich-python", help="another one, with another MPI library")
    parser.add_argument("--ps-lite", metavar="PROGRAM", help="peers/ps_lite.cc, compiled")
    parser.add_argument("--sizes", default=SIZES, help="bytes of dense gradients; empty for none")
    parser.add_argument("--widths", default=WIDTHS, help="numbers in a row of the table; empty for none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def job(python: str, kind: str, numbers: str) -> list[dict]:
    """What one job tells. Raises JobError."""
    launcher = [mpiexec(python), "-n", "2"]
    if mpi_library(python).startswith("Open MPI"):
        launcher += ["--bind-to", "none", *(["--oversubscribe"] if len(os.sched_getaffinity(0)) < 2 else [])]
    command = [*launcher, python, "-m", "mpi4py", str(RANK), kind, numbers]
    try:
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise JobError(f"{kind} {numbers}: not finished after {TIMEOUT_S} s") from error
    if done.returncode:
        raise JobError(f"{kind} {numbers}: {last_line(done.stdout + done.stderr)}")
    told: list[dict] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def run(chosen: argparse.Namespace) -> tuple[dict[Case, list[float]], dict[Case, int]]:
    """The seconds of all calls of each case, and how many numbers were wrong."""
    kinds = {"dense": chosen.sizes, "messages": chosen.sizes, "peer": chosen.sizes}
    kinds |= {"sparse": chosen.widths, "sparse-messages": chosen.widths}
    seconds: dict[Case, list[float]] = {}
    wrong: dict[Case, int] = {}

    def take(library: str, all_told: list[dict]) -> None:
        for told in all_told:
            case = library, told["what"], told["size"]
            seconds.setdefault(case, []).extend(told["seconds"])
            wrong[case] = wrong.get(case, 0) + told["wrong"]

    for _ in range(chosen.rounds):
        for python in filter(None, (chosen.python, chosen.mpich_python)):
            library = " ".join(mpi_library(python).split()[:2]).rstrip(",:").replace(" Version", "")
            for kind, numbers in kinds.items():
                if numbers:
                    take(library, job(python, kind, numbers))
        if chosen.ps_lite:
            take(PS_LITE, ps_lite.job(chosen.ps_lite, chosen.sizes, chosen.widths, TIMEOUT_S))
    return seconds, wrong


def rows(seconds: dict[Case, list[float]], wrong: dict[Case, int]) -> list[dict[str, object]]:
    """As every bench writes them; the peer is the same library's own, of the same size."""
    found = []
    for case, calls in seconds.items():
        library, what, size = case
        median_s, ordered = statistics.median(calls), sorted(calls)
        row: dict[str, object] = {"case": what, "library": library, "size": size, "ranks": 2, "calls": len(calls)}
        row |= {"median_s": median_s, "p99_s": ordered[len(calls) * 99 // 100], "min_s": ordered[0]}
        row["wrong"] = wrong[case]
        if (library, PEER, size) in seconds and what != PEER:
            peer_s = statistics.median(seconds[library, PEER, size])
            row |= {"peer": PEER, "peer_s": peer_s, "ratio": peer_s / median_s}
        alike = what.removesuffix(", by messages"), size
        if (PS_LITE, *alike) in seconds and library != PS_LITE:
            ps_lite_s = statistics.median(seconds[PS_LITE, *alike])
            row |= {"ps_lite_s": ps_lite_s, "ps_lite_ratio": ps_lite_s / median_s}
        earlier_s = PS_LITE_S.get(alike)
        if earlier_s is not None and what != PEER:
            row |= {"ps_lite_earlier_s": earlier_s, "ps_lite_earlier_ratio": earlier_s / median_s}
        found.append(row)
    return found


def show(found: list[dict]) -> None:
    """The table."""
    print(
        "| library | what | bytes | median | p99 | Send and Recv | x | ps-lite | x | ps-lite, earlier | x | verified |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|")
    for row in found:
        times = f"{_time(row['median_s'])} | {_time(row['p99_s'])}"
        beside = [("peer_s", "ratio"), ("ps_lite_s", "ps_lite_ratio"), ("ps_lite_earlier_s", "ps_lite_earlier_ratio")]
        peers = " | ".join(f"{_time(row[time])} | {row[ratio]:.1f}" if time in row else "|" for time, ratio in beside)
        verified = "yes" if row["wrong"] == 0 else f"NO: {row['wrong']} wrong"
        print(f"| {row['library']} | {row['case']} | {row['size']:,} | {times} | {peers} | {verified} |")


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:,.2f} ms"


def main() -> int:
    """Exit status 1 if a result is wrong."""
    chosen = options()
    before = os.getloadavg()[0]
    try:
        found = rows(*run(chosen))
    except JobError as error:
        raise SystemExit(str(error)) from error
    loads = [round(load, 1) for load in (before, os.getloadavg()[0])]
    print(f"{chosen.rounds} rounds; load average before and after: {loads}\n")
    show(found)
    if chosen.json:
        write_json(chosen.json, PACKAGES, found, rounds=chosen.rounds, load_average=loads)
    return 1 if any(row["wrong"] for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
