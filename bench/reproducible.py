"""What the same bits at any rank count cost: ``train.reproducible`` beside fast runs, on Fashion-MNIST.

    python bench/reproducible.py --json one.json
    mpiexec -n 2 python bench/reproducible.py --json two.json

Softmax regression 784 x 10 and a perceptron 784-512-256-10, global batch 256, float32, one thread a rank. Runs of one
epoch, fast and reproducible in turn, in one process a rank: on a machine that others use too, both meet the same. The
cost is that of a step's time: from the medians of all runs, and from the tenth part of the runs that was fastest. The
bits of the reproducible runs must be those of all other runs, and of the file given by ``--same-bits-as``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
from pathlib import Path

from common import write_json
from training import DATA, EXAMPLE, LEARNING_RATE

import hpcps
from hpcps import launch
from hpcps.config import read

BATCH = 256
MODELS = {"softmax": (), "mlp": ("model.kind=mlp", "model.hidden=[512,256]")}
GOALS = {"softmax": 0.10, "mlp": 0.25}


def run(options: argparse.Namespace, model: str, reproducible: bool) -> dict[str, object]:
    """The summary of one epoch."""
    settings = [f"data.path={options.data}", "train.epochs=1", "run.threads=1", *MODELS[model]]
    settings += [f"optimizer.learning_rate={LEARNING_RATE}", f"train.batch={BATCH}"]
    settings += [f"train.grains={options.grains}", f"train.reproducible={str(reproducible).lower()}"]
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        return hpcps.train(read(EXAMPLE, {}, settings), out=Path(folder, "run")).summary


def measure(options: argparse.Namespace, model: str) -> dict[str, object]:
    """One row of the table."""
    runs = [[run(options, model, reproducible) for reproducible in (False, True)] for _ in range(options.rounds)]
    steps = [sorted(1e6 * BATCH / one["samples_per_s"] for one in way) for way in zip(*runs, strict=True)]
    medians = [statistics.median(way) for way in steps]
    fastest = [way[len(way) // 10] for way in steps]
    return {
        "case": model,
        "ranks": runs[0][0]["ranks"],
        "size": BATCH,
        "step_us": medians[0],
        "reproducible_step_us": medians[1],
        "cost": medians[1] / medians[0] - 1,
        "fastest_step_us": fastest[0],
        "fastest_reproducible_step_us": fastest[1],
        "cost_of_fastest": fastest[1] / fastest[0] - 1,
        "goal": GOALS[model],
        "sha256": sorted({one["params_sha256"] for _, one in runs}),
    }


def wrong(rows: list[dict[str, object]], other: Path | None) -> list[str]:
    """The models whose bits differ between runs, or from those of another rank count."""
    told = json.loads(other.read_text())["rows"] if other else []
    known = {row["case"]: row["sha256"] for row in told}
    found = {str(row["case"]): row["sha256"] for row in rows}
    return [case for case, sha in found.items() if len(sha) > 1 or known.get(case, sha) != sha]


def main() -> int:
    """Run all; exit status 1 if the bits differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA, help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--grains", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--same-bits-as", type=Path, help="what --json wrote at another rank count")
    options = parser.parse_args()
    rows = [measure(options, model) for model in options.models.split(",")]
    if launch.world().rank > 0:
        return 0
    print("| case | ranks | step | reproducible | cost | fastest | reproducible | cost | goal |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        medians = f"{row['step_us']:,.0f} us | {row['reproducible_step_us']:,.0f} us | {row['cost']:.0%}"
        fastest = f"{row['fastest_step_us']:,.0f} us | {row['fastest_reproducible_step_us']:,.0f} us"
        cost = f"{row['cost_of_fastest']:.0%} | {row['goal']:.0%}"
        print(f"| {row['case']} | {row['ranks']} | {medians} | {fastest} | {cost} |")
    if options.json:
        write_json(options.json, ("hpcps", "numpy", "numba", "mpi4py"), rows, grains=options.grains)
    differ = wrong(rows, options.same_bits_as)
    print(*(f"{model}: the bits differ" for model in differ), sep="\n", file=sys.stderr)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
