"""What averaging parameters now and then gains and costs, on Fashion-MNIST: speed, loss and accuracy over its interval.

    python bench/averaging.py --json averaging.json
    python bench/averaging.py --model mlp --json averaging-mlp.json

The configuration of ``bench/training.py``: softmax regression 784 x 10 or a perceptron 784-512-256-10, global batch
256, SGD with momentum 0.9, one thread a rank. All-reduce and averaging after every 1, 4, 16, 64 steps run in turn,
``--rounds`` times; speeds are medians. All rounds of a case must end with the same parameters.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import write_json
from training import ACCURACY_MIN, DATA, EPOCHS, EXAMPLE, LEARNING_RATE, SETTINGS, TIMEOUT_S

CASES = {"all-reduce": ("train.strategy=ring",)} | {
    f"k = {every}": ("train.strategy=averaging", f"train.average_every={every}") for every in (1, 4, 16, 64)
}


def run(options: argparse.Namespace, settings: tuple[str, ...]) -> dict[str, Any]:
    """The summary of one run of the program, as a user starts it."""
    words = [f"data.path={options.data}", f"train.epochs={options.epochs}", "run.threads=1"]
    words += [f"optimizer.learning_rate={LEARNING_RATE}", *SETTINGS[options.model], *settings]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hpcps", "train", str(EXAMPLE), "--ranks", str(options.ranks)]
        command += ["--out", f"{folder}/run", *(word for setting in words for word in ("--set", setting))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(settings)}: status {done.returncode}\n{done.stderr}")
        summary: dict[str, Any] = json.loads(Path(folder, "run", "summary.json").read_text())
    return summary


def row(case: str, runs: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    speeds = [one["samples_per_s"] for one in runs]
    last = runs[-1]
    return {
        "case": case,
        "size": last["steps"] * 256,
        "samples_per_s": statistics.median(speeds),
        "samples_per_s_min": min(speeds),
        "samples_per_s_max": max(speeds),
        "sums": last.get("averagings", last["steps"]),
        **{name: last[name] for name in ("loss", "test_loss", "accuracy", "exchange", "params_sha256")},
        "wrong": len({one["params_sha256"] for one in runs}) - 1 + (last["accuracy"] < ACCURACY_MIN[options.model]),
    }


def main() -> int:
    """Run all rounds; exit status 1 if a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA, help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--model", choices=("softmax", "mlp"), default="softmax")
    parser.add_argument("--epochs", type=int, help="5, of the perceptron 2")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not Path(options.data).is_dir():
        parser.error(f"{options.data}: no such folder; apt-get install dataset-fashion-mnist, or give --data")
    options.epochs = options.epochs or EPOCHS[options.model]
    runs: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    for number in range(options.rounds):
        for case, settings in CASES.items():
            print(f"round {number + 1}/{options.rounds}: {case}", file=sys.stderr, flush=True)
            runs[case].append(run(options, settings))
    rows = [row(case, runs[case], options) for case in CASES]
    print("| | sums | samples/s, median | min - max | training loss, last epoch | held-out loss | accuracy |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for one in rows:
        speed = f"{one['samples_per_s']:,.0f} | {one['samples_per_s_min']:,.0f} - {one['samples_per_s_max']:,.0f}"
        quality = f"{one['loss']:.4f} | {one['test_loss']:.4f} | {one['accuracy']:.4f}"
        print(f"| {one['case']} | {one['sums']:,} | {speed} | {quality} |")
    if options.json:
        write_json(options.json, ("hpcps", "numpy", "numba", "mpi4py"), rows, ranks=options.ranks)
    wrong = [one["case"] for one in rows if one["wrong"]]
    print(*(f"{case}: its rounds differ in bits, or it has not learned" for case in wrong), sep="\n", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
