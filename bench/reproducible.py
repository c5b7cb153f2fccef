"""What the same bits at any rank count cost: runs with ``train.reproducible`` beside runs without, on Fashion-MNIST.

    python bench/reproducible.py --rounds 7 --json reproducible.json

Softmax regression 784 x 10 and a perceptron 784-512-256-10, global batch 256, float32, 1 and 2 ranks of one thread.
Each round runs both ways right after each other; the cost is the median of the rounds' own ratios of a step's time,
less 1. Beside it stands that of the fastest runs, for a machine that others use too. A model counts only if its
reproducible runs end with the same parameters at both rank counts.
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
from training import DATA, EXAMPLE, LEARNING_RATE, TIMEOUT_S

BATCH = 256
MODELS = {"softmax": [], "mlp": ["model.kind=mlp", "model.hidden=[512,256]"]}
EPOCHS = {"softmax": 5, "mlp": 1}
GOALS = {"softmax": 0.10, "mlp": 0.25}


def run(options: argparse.Namespace, model: str, ranks: int, reproducible: bool) -> dict[str, Any]:
    """The summary of one run of the program, as a user starts it."""
    settings = [f"data.path={options.data}", f"train.epochs={EPOCHS[model]}", "run.threads=1", *MODELS[model]]
    settings += [f"optimizer.learning_rate={LEARNING_RATE}", f"train.batch={BATCH}"]
    settings += [f"train.grains={options.grains}", f"train.reproducible={str(reproducible).lower()}"]
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/run"
        command = [sys.executable, "-m", "hpcps", "train", str(EXAMPLE), "--ranks", str(ranks), "--out", out]
        command += [word for setting in settings for word in ("--set", setting)]
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
        found: dict[str, Any] = json.loads(Path(out, "summary.json").read_text())
    return found


def measure(options: argparse.Namespace, model: str, ranks: int) -> dict[str, object]:
    """One row of the table."""
    fast, exact = [], []
    for number in range(options.rounds):
        print(f"{model}, {ranks} ranks: round {number + 1}/{options.rounds}", file=sys.stderr, flush=True)
        fast.append(run(options, model, ranks, False))
        exact.append(run(options, model, ranks, True))
    speeds, others = ([one["samples_per_s"] for one in found] for found in (fast, exact))
    ratios = [speed / other - 1 for speed, other in zip(speeds, others, strict=True)]
    return {
        "case": f"{model}, {ranks} rank" + "s" * (ranks > 1),
        "size": BATCH,
        "step_us": 1e6 * BATCH / statistics.median(speeds),
        "reproducible_step_us": 1e6 * BATCH / statistics.median(others),
        "cost": statistics.median(ratios),
        "cost_min": min(ratios),
        "cost_max": max(ratios),
        "fastest_step_us": 1e6 * BATCH / max(speeds),
        "fastest_reproducible_step_us": 1e6 * BATCH / max(others),
        "cost_of_fastest": max(speeds) / max(others) - 1,
        "goal": GOALS[model],
        "sha256": sorted({one["params_sha256"] for one in exact}),
    }


def main() -> int:
    """Run all; exit status 1 if the bits differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA, help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--grains", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    wrong, rows = 0, []
    print("| case | step | reproducible | cost | min - max | fastest step | reproducible | cost | goal |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for model in MODELS:
        own = [measure(options, model, ranks) for ranks in (1, 2)]
        wrong += len({sha for row in own for sha in row["sha256"]}) != 1
        for row in own:
            spread = f"{row['cost_min']:.0%} - {row['cost_max']:.0%}"
            times = f"{row['step_us']:,.0f} us | {row['reproducible_step_us']:,.0f} us | {row['cost']:.0%} | {spread}"
            best = f"{row['fastest_step_us']:,.0f} us | {row['fastest_reproducible_step_us']:,.0f} us"
            print(
                f"| {row['case']} | {times} | {best} | {row['cost_of_fastest']:.0%} | {row['goal']:.0%} |", flush=True
            )
        rows += own
    if options.json:
        write_json(options.json, ("hpcps", "numpy", "numba", "mpi4py"), rows, grains=options.grains)
    print("the bits differ between rank counts" if wrong else "the same bits at both rank counts", file=sys.stderr)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
