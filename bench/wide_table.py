"""Memory and speed with a table larger than a rank should hold: on shards, beside a copy on every rank.

    python bench/wide_table.py --json wide.json

An embedding of 10^7 rows x 16 (1.2 GiB with AdaGrad's state), 54,000 samples of 20 features whose frequencies fall off
steeply, two epochs, whole runs as a user starts them: workers and shards on ranks of their own, shards on the workers'
ranks, and all-reduce, where every rank holds the table. The bits must be the same everywhere.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import write_json

SAMPLES, ENTRIES = 60_000, 20
TIMEOUT_S = 600
CASES = {
    "2 workers + 2 shards": (4, ["train.strategy=server", "server.count=2"]),
    "2 workers, shards on their ranks": (2, ["train.strategy=server", "server.colocated=true"]),
    "2 ranks, all-reduce, whole tables": (2, ["train.strategy=ring"]),
}


def generate(path: Path, rows: int) -> None:
    """Samples in libsvm text."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for _ in range(SAMPLES):
            columns = np.unique((rows * rng.random(ENTRIES) ** 3).astype(np.int64)) + 1
            file.write(f"{int(columns.sum() % 2)} " + " ".join(f"{column}:1" for column in columns) + "\n")


def run(data: Path, out: Path, rows: int, ranks: int, settings: list[str]) -> dict[str, object]:
    """One run's summary."""
    words = [f"data.path={data}", "data.format=libsvm", f"data.features={rows}", "data.test_fraction=0.1"]
    words += ["model.kind=embedding", "model.width=16", "model.hidden=[32]", "train.epochs=2", "train.batch=1000"]
    words += ["optimizer.kind=adagrad", "train.reproducible=true", "run.threads=1", *settings]
    config = out.with_suffix(".toml")
    config.write_text("".join(f"{key} = {json.dumps(told(value))}\n" for key, value in (w.split("=") for w in words)))
    command = [sys.executable, "-m", "hpcps", "train", str(config), "--ranks", str(ranks), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
    found: dict[str, object] = json.loads((out / "summary.json").read_text())
    return found


def told(value: str) -> object:
    """A setting's value."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def main() -> int:
    """Exit status 1 if the runs end with other bits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10**7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table: list[dict[str, object]] = []
    print("| | peak memory of a rank, MiB | samples/s | bits |\n|---|---|---:|---|")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "wide.svm")
        generate(data, options.rows)
        for name, (ranks, settings) in CASES.items():
            found = run(data, Path(folder, "run"), options.rows, ranks, settings)
            peaks, bits = found["peak_memory_mib"], str(found["params_sha256"])
            print(f"| {name} | {', '.join(map(str, peaks))} | {found['samples_per_s']:,.0f} | {bits[:8]} |", flush=True)
            table.append({"case": name, "size": options.rows, "peak_memory_mib": peaks, "bits": bits})
            table[-1]["samples_per_s"] = found["samples_per_s"]
            shutil.rmtree(Path(folder, "run"))
    wrong = len({row["bits"] for row in table}) - 1
    if options.json:
        write_json(options.json, ("hpcps", "numpy", "numba", "mpi4py"), [{**row, "wrong": wrong} for row in table])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
