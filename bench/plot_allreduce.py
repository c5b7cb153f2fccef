"""Plots of ``bench/allreduce.py --json FILE``: time and bus bandwidth over size.

    python bench/plot_allreduce.py FILE --out docs/images/allreduce-node.png

Needs matplotlib (``pip install -e '.[bench]'``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display is needed
import matplotlib.pyplot as plt

Row = dict[str, Any]

STYLES = {  # how each contender is drawn: the libraries in their colour, best tuned with a broken line
    "hpcps": {"color": "#c1272d", "linewidth": 2.4, "marker": "o", "zorder": 5},
    "hpcps, plain arrays": {"color": "#c1272d", "linestyle": "--", "marker": "o", "markerfacecolor": "white"},
    "Open MPI": {"color": "#0072b2", "marker": "s"},
    "Open MPI, best tuned": {"color": "#0072b2", "linestyle": "--", "marker": "s", "markerfacecolor": "white"},
    "MPICH": {"color": "#009e73", "marker": "^"},
    "MPICH, best tuned": {"color": "#009e73", "linestyle": "--", "marker": "^", "markerfacecolor": "white"},
    "gloo": {"color": "#8a6d1d", "marker": "D"},
    "memcpy": {"color": "#777777", "linestyle": ":", "linewidth": 2.0},
}
UNITS = ((1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))


def label(size: int) -> str:
    """Bytes, for an axis."""
    unit, name = next((unit, name) for unit, name in UNITS if size >= unit)
    return f"{size // unit} {name}"


def draw(axes: Any, rows: list[Row], value: Callable[[Row], float]) -> None:
    """One line a contender."""
    for case, style in STYLES.items():
        points = sorted((row["size"], value(row)) for row in rows if row["case"] == case and row["size"])
        if points:
            axes.plot(*zip(*points, strict=True), label=case, **{"linewidth": 1.5, "markersize": 4.5, **style})
    sizes = sorted({row["size"] for row in rows if row["size"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes[::2], [label(size) for size in sizes[::2]], rotation=45, ha="right")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("array")


def plot(told: dict[str, Any], out: Path) -> None:
    """Write the picture."""
    rows = told["rows"]
    dtype = next(row["dtype"] for row in rows if row["size"])
    figure, (times, bandwidths) = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
    draw(times, rows, lambda row: row["median_s"] * 1e6)
    times.set_yscale("log")
    times.set_ylabel("median time of an all-reduce, µs")
    draw(bandwidths, rows, lambda row: row["busbw"])
    bandwidths.set_ylim(bottom=0)
    bandwidths.set_ylabel("bus bandwidth, GB/s")
    times.legend(frameon=False)
    machine = told["machine"]
    figure.suptitle(
        f"All-reduce inside a node: {told['ranks']} ranks, {dtype}, {machine['cores']} cores of {machine['cpu']}"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main() -> None:
    """Read the figures and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="what bench/allreduce.py --json wrote")
    parser.add_argument("--out", type=Path, required=True, help="the picture, .png or .svg")
    options = parser.parse_args()
    plot(json.loads(options.file.read_text()), options.out)


if __name__ == "__main__":
    main()
