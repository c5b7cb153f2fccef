"""Loss curves of Fashion-MNIST with and without compression, as a PNG and a table.

``python bench/plot_compression.py --png docs/compression.png``: one run of each kind on threads of this process.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import hpcps_kernels
import numpy as np
from common import write_json

import hpcps
from hpcps.comm import compressed
from hpcps.comm.local import LocalWorld
from hpcps.config import from_tree

DATA = "/usr/share/datasets/fashion-mnist"
KINDS = {
    "none (float32)": {},
    "bf16": {"kind": "bf16"},
    "int8": {"kind": "int8"},
    "top-k, 1 %": {"kind": "topk"},
    "top-k, 0.1 %": {"kind": "topk", "fraction": 0.001},
}


@dataclass
class Case:
    """One run: its losses after each report, and what it ended with."""

    name: str
    steps: list[int]
    losses: list[float]
    summary: dict[str, float]
    bytes_a_step: float


def run(name: str, compress: dict[str, object], options: argparse.Namespace) -> Case:
    """Train with this section ``compress``."""
    config = from_tree(
        {
            "data": {"path": options.data, "scale": "bytes"},
            "model": {"kind": "mlp", "hidden": [512, 256]},
            "optimizer": {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9},
            "train": {"epochs": options.epochs, "batch": 256, "report_every": 78, "strategy": "ring"},
            "run": {"threads": 1},
            "compress": compress,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        done = hpcps.train(config, ranks=options.ranks, out=Path(folder) / "run")
        lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
    sent = sent_bytes(compress, done.summary["parameters"], options.ranks)
    return Case(name, steps, losses, done.summary, sent)


def sent_bytes(compress: dict[str, object], count: int, ranks: int) -> float:
    """What a rank sends in a step, from the messages of one all-reduce; for float32 the ring's 2 (P - 1) / P arrays."""
    if not compress:
        return 2 * (ranks - 1) / ranks * 4 * count
    sent = 0

    def counting(isend):
        def send(buffer, to, tag):
            nonlocal sent
            sent += buffer.nbytes
            return isend(buffer, to, tag)

        return send

    kernels = hpcps_kernels.load("cpu")
    transports = LocalWorld(ranks).transports()
    settings = {name: value for name, value in compress.items() if name != "kind"}
    pending = []
    for transport in transports:
        transport.isend = counting(transport.isend)
        way = compressed.make(compress["kind"], transport, count, "float32", kernels, **settings)
        pending.append(way.start(np.ones(count, np.float32)))
    while sum(one.done() for one in pending) < ranks:  # each goes on as far as it can
        pass
    return sent / ranks


def plot(cases: list[Case], png: Path) -> None:
    """Training loss over steps, one line a case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=100)
    styles = ["-", "--", "-.", ":", (0, (3, 1, 1, 1))]
    for case, style in zip(cases, styles, strict=True):
        ending = f"{case.name}: {case.bytes_a_step / 1e6:.3g} MB a step"
        axes.plot(case.steps, case.losses, linestyle=style, label=ending, linewidth=1.6)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss, mean since the last point")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.2g}")
    axes.yaxis.set_minor_formatter("{x:.2g}")
    axes.set_title(f"Fashion-MNIST, 784-512-256-10, batch 256, {int(cases[0].summary['ranks'])} ranks")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(png)


def main() -> int:
    """Run all kinds, print the table, write PNG and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA, help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not Path(options.data).is_dir():
        parser.error(f"{options.data}: no such folder; apt-get install dataset-fashion-mnist, or give --data")
    cases = []
    for name, compress in KINDS.items():
        print(name, file=sys.stderr, flush=True)
        cases.append(run(name, compress, options))
    print("\n| compress | sent by a rank in a step | training loss | test loss | accuracy |\n|---|---:|---:|---:|---:|")
    for case in cases:
        last = case.summary
        figures = f"{last['loss']:.4f} | {last['test_loss']:.4f} | {last['accuracy']:.4f}"
        print(f"| {case.name} | {case.bytes_a_step:,.0f} bytes | {figures} |")
    if options.png:
        plot(cases, options.png)
    if options.json:
        rows = [{"case": c.name, "bytes": c.bytes_a_step, "losses": c.losses, **c.summary} for c in cases]
        write_json(options.json, ("hpcps", "numpy", "numba", "matplotlib"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
