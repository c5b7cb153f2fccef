"""Training throughput on Fashion-MNIST, beside PyTorch DDP on gloo.

Softmax regression 784 x 10, or a perceptron 784-512-256-10 (``--model mlp``), global batch 256, SGD with momentum 0.9,
the same epochs for all::

    python bench/training.py --torch-python VENV/bin/python --json training.json
    python bench/training.py --model mlp --torch-python VENV/bin/python --json training-mlp.json

Data: Debian's package ``dataset-fashion-mnist`` (or any folder with its four IDX files). PyTorch lives in an
environment of its own, because it brings its own libraries: ``pip install torch==2.13.0 numpy`` there, and hpcps for
its hook; without them the peer's rows say so. All cases run in turn, ``--rounds`` times, so that a machine whose speed
drifts is fair to all; the table gives medians. A case counts only if its accuracy is right.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from common import write_json

EXAMPLE = Path(__file__).parents[1] / "examples" / "fashion-mnist.toml"
PEER = Path(__file__).with_name("peers") / "torch_ddp.py"
DATA = "/usr/share/datasets/fashion-mnist"
LEARNING_RATE = 0.05
ACCURACY_MIN = {"softmax": 0.83, "mlp": 0.83}
ACCURACY_DIFFERENCE_MAX = {"softmax": 0.005, "mlp": 0.03}  # a perceptron's accuracy after few epochs moves up and down
EPOCHS = {"softmax": 5, "mlp": 2}
SETTINGS = {"softmax": (), "mlp": ("model.kind=mlp", "model.hidden=[512, 256]")}
TIMEOUT_S = 600
RATIOS = (
    ("hpcps, 2 ranks", "hpcps, 1 rank"),
    ("hpcps, 2 ranks", "PyTorch DDP gloo, 2 processes"),
    ("hpcps, 1 rank, reproducible, 8 grains", "hpcps, 1 rank"),
    ("hpcps, 2 ranks, reproducible, 8 grains", "hpcps, 2 ranks"),
    ("PyTorch DDP, hpcps hook, 2 processes", "PyTorch DDP gloo, 2 processes"),
)


@dataclass
class Case:
    """One way to train; ``run`` gives (samples/s, accuracy)."""

    name: str
    run: Callable[[], tuple[float, float]]
    speeds: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    missing: str = ""

    def once(self) -> None:
        """Run it one more time, unless it has turned out not to run here."""
        if self.missing:
            return
        try:
            speed, accuracy = self.run()
        except (subprocess.SubprocessError, OSError) as error:
            said = getattr(error, "stderr", None) or b""
            last = said.decode(errors="replace").strip().rpartition("\n")[2]
            self.missing = " ".join((last or str(error)).split())[:200]
            return
        self.speeds.append(speed)
        self.accuracies.append(accuracy)

    @property
    def speed(self) -> float:
        return statistics.median(self.speeds)

    @property
    def accuracy(self) -> float:
        return statistics.median(self.accuracies)


def hpcps(options: argparse.Namespace, ranks: int, threads: int, *settings: str) -> tuple[float, float]:
    """One run of the program, as a user starts it."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f"data.path={options.data}", f"train.epochs={options.epochs}", f"run.threads={threads}"]
        words += [f"optimizer.learning_rate={LEARNING_RATE}", *settings, *SETTINGS[options.model]]
        command = [
            sys.executable,
            "-m",
            "hpcps",
            "train",
            str(EXAMPLE),
            "--ranks",
            str(ranks),
            "--out",
            f"{folder}/run",
        ]
        command += [word for setting in words for word in ("--set", setting)]
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    return summary["samples_per_s"], summary["accuracy"]


def torch(options: argparse.Namespace, ranks: int, threads: int, *settings: str) -> tuple[float, float]:
    """One run of the peer."""
    if not options.torch_python:
        raise FileNotFoundError("not run: give --torch-python, an interpreter with torch==2.13.0")
    with tempfile.TemporaryDirectory() as folder:
        command = [options.torch_python, str(PEER), "--data", options.data, "--ranks", str(ranks)]
        command += ["--threads", str(threads), "--epochs", str(options.epochs), "--json", f"{folder}/peer.json"]
        command += ["--learning-rate", str(LEARNING_RATE), "--model", options.model, *settings]
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
        found = json.loads(Path(folder, "peer.json").read_text())
    return found["samples_per_s"], found["accuracy"]


def cases(options: argparse.Namespace) -> list[Case]:
    """All that is compared."""
    exact = "train.reproducible=true", "train.grains=8"
    return [
        Case("hpcps, 1 rank", lambda: hpcps(options, 1, 1)),
        Case("hpcps, 2 ranks", lambda: hpcps(options, 2, 1)),
        Case("hpcps, 1 rank, reproducible, 8 grains", lambda: hpcps(options, 1, 1, *exact)),
        Case("hpcps, 2 ranks, reproducible, 8 grains", lambda: hpcps(options, 2, 1, *exact)),
        Case("hpcps, 1 worker + 1 server", lambda: hpcps(options, 2, 1, "train.strategy=server")),
        Case("hpcps, 1 rank, 2 threads", lambda: hpcps(options, 1, 2)),
        Case("PyTorch, 1 process", lambda: torch(options, 1, 1)),
        Case("PyTorch, 1 process, 2 threads", lambda: torch(options, 1, 2)),
        Case("PyTorch DDP gloo, 2 processes", lambda: torch(options, 2, 1)),
        Case("PyTorch DDP, hpcps hook, 2 processes", lambda: torch(options, 2, 1, "--hook", "hpcps")),
    ]


def verify(found: list[Case], model: str) -> list[str]:
    """What is wrong with the results: all must have learned, and equally well."""
    ran = [case for case in found if case.speeds]
    reference = max(case.accuracy for case in ran)
    wrong = [f"{case.name}: accuracy {case.accuracy:.4f}" for case in ran if case.accuracy < ACCURACY_MIN[model]]
    return wrong + [
        f"{case.name}: accuracy {case.accuracy:.4f}, {reference - case.accuracy:.4f} below the best"
        for case in ran
        if reference - case.accuracy > ACCURACY_DIFFERENCE_MAX[model]
    ]


def rows(found: list[Case], options: argparse.Namespace) -> list[dict[str, object]]:
    """One row a case; the peer of each is DDP with two processes."""
    samples = 60000 // 256 * 256 * options.epochs
    peer = next(case for case in found if "DDP gloo" in case.name)
    table: list[dict[str, object]] = []
    for case in found:
        row: dict[str, object] = {"case": case.name, "size": samples, "missing": case.missing or None}
        if case.speeds:
            row |= {
                "samples_per_s": case.speed,
                "samples_per_s_min": min(case.speeds),
                "samples_per_s_max": max(case.speeds),
                "median_s": samples / case.speed,
                "accuracy": case.accuracy,
                "wrong": int(case.accuracy < ACCURACY_MIN[options.model]),
            }
            if peer.speeds:
                row |= {"peer": peer.name, "peer_s": samples / peer.speed, "ratio": case.speed / peer.speed}
        table.append(row)
    return table


def show(found: list[Case]) -> None:
    """The table as Markdown, and the ratios that are goals."""
    by_name = {case.name: case for case in found}
    ddp = by_name["PyTorch DDP gloo, 2 processes"]
    print("| case | samples/s, median | min - max | x DDP with 2 | accuracy |\n|---|---:|---:|---:|---:|")
    for case in found:
        if not case.speeds:
            print(f"| {case.name} | {case.missing} | | | |")
            continue
        ratio = f"{case.speed / ddp.speed:.1f}" if ddp.speeds else ""
        spread = f"{min(case.speeds):,.0f} - {max(case.speeds):,.0f}"
        name = f"{case.name} ({len(case.speeds)} rounds, then: {case.missing})" if case.missing else case.name
        print(f"| {name} | {case.speed:,.0f} | {spread} | {ratio} | {case.accuracy:.4f} |")
    print()
    for more, less in RATIOS:
        a, b = by_name[more], by_name[less]
        if a.speeds and b.speeds:
            paired = statistics.median(x / y for x, y in zip(a.speeds, b.speeds, strict=False))  # one may have failed
            print(f"{more} / {less}: {a.speed / b.speed:.2f} (median of the rounds' own ratios: {paired:.2f})")


def main() -> int:
    """Run all rounds; exit status 1 if a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA, help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--torch-python", help="interpreter of an environment with torch==2.13.0")
    parser.add_argument("--model", choices=("softmax", "mlp"), default="softmax")
    parser.add_argument("--epochs", type=int, help="5, of the perceptron 2")
    parser.add_argument("--cases", default="", help="a regular expression: only cases in whose names it is found")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not Path(options.data).is_dir():
        parser.error(f"{options.data}: no such folder; apt-get install dataset-fashion-mnist, or give --data")
    options.epochs = options.epochs or EPOCHS[options.model]
    found = cases(options)
    for case in found:
        case.missing = "" if re.search(options.cases, case.name) else "not asked for"
    for number in range(options.rounds):
        for case in found:
            print(f"round {number + 1}/{options.rounds}: {case.name}", file=sys.stderr, flush=True)
            case.once()
    show(found)
    if options.json:
        write_json(options.json, ("hpcps", "numpy", "numba", "mpi4py"), rows(found, options))
    wrong = verify(found, options.model)
    print(*wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
