"""Plots of the parameter server's figures.

    python bench/plot_server.py stragglers FILE --out docs/images/stragglers.png
    python bench/plot_server.py ring-or-server FILES --out docs/images/ring-or-server.png

FILE: what ``bench/stragglers.py --json``, ``bench/ring_or_server.py --json`` wrote; of the latter there may be several,
with other rates. Needs matplotlib (``pip install -e
'.[bench]'``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")  # no display is needed
import matplotlib.pyplot as plt

Row = dict[str, Any]

TITLES = {
    "none": "no straggler",
    "persistent": "one worker of four is always {factor:g} x as slow",
    "transient": "each step {factor:g} x as slow with probability {probability:g}",
}
STYLES = {  # of the ways, as in the other plots: what is all-reduced in red
    "ring": {"color": "#c1272d", "marker": "o"},
    "shards for tables": {"color": "#8a6d1d", "marker": "D"},
    "colocated shards": {"color": "#0072b2", "marker": "s", "linestyle": "--"},
    "server alone": {"color": "#009e73", "marker": "^"},
    "auto": {"color": "black", "marker": "x", "linestyle": ":"},
}
MODELS = {
    "dense": "dense, 4 MiB",
    "logistic": "logistic: rows of 1",
    "fm": "fm: rows of 1 + 8",
    "embedding": "embedding: rows of 16, 1 MiB dense",
    "wide": "embedding: rows of 64, 1 MiB dense",
}


def tidy(axes: Any) -> None:
    """As all plots look."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def stragglers(told: dict[str, Any]) -> Any:
    """The loss over time, one line a staleness; the median of the rounds."""
    kinds = list(dict.fromkeys(row["case"] for row in told["rows"] if row["case"] != "none"))
    slacks = list(dict.fromkeys(row["staleness"] for row in told["rows"]))
    colours = dict(zip(slacks, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(slacks))), strict=True))
    colours["async"] = "#c1272d"
    figure, panels = plt.subplots(1, len(kinds), figsize=(6 * len(kinds), 4.8), layout="constrained", squeeze=False)
    times = np.linspace(0.05, told["options"]["seconds"], 200)
    for kind, axes in zip(kinds, panels[0], strict=True):
        for row in (one for one in told["rows"] if one["case"] == kind):
            curves = [np.interp(times, one["times"], one["losses"], right=np.nan) for one in row["curves"]]
            style = {"linewidth": 2.4} if row["staleness"] in (0, "async") else {"linewidth": 1.4}
            name = {0: "0 (synchronous)"}.get(row["staleness"], row["staleness"])
            axes.plot(times, np.median(curves, axis=0), label=name, color=colours[row["staleness"]], **style)
        axes.axhline(told["rows"][0]["target"], color="#777777", linestyle=":")
        axes.set_title(TITLES[kind].format(**told["options"]))
        axes.set_ylim(told["rows"][0]["target"] - 0.1, 1.2)
        axes.set_xlabel("seconds")
        axes.set_ylabel("held-out loss")
        tidy(axes)
    panels[0][-1].legend(title="staleness", frameon=False)
    return figure


def ring_or_server(rows: list[Row]) -> Any:
    """A column a model, one line a way: time for each rate of the links, and bytes below."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    rates = list(dict.fromkeys(row["rate"] for row in rows))
    size = (4 * len(models), 2.9 * (len(rates) + 1))
    figure, panels = plt.subplots(len(rates) + 1, len(models), figsize=size, layout="constrained", squeeze=False)
    for column, model in enumerate(models):
        own = [row for row in rows if row["model"] == model]
        for rate, axes in zip(rates, panels[:-1, column], strict=True):
            over_hosts(axes, [row for row in own if row["rate"] == rate], lambda row: min(row["seconds"]) * 1e3)
            axes.set_ylabel(f"ms a step, {rate}")
        over_hosts(panels[-1][column], [row for row in own if row["rate"] == rates[0]], lambda row: row["sent"] / 2**20)
        panels[-1][column].set_ylabel("MiB a step, busiest host")
        panels[-1][column].set_xlabel("hosts")
        panels[0][column].set_title(MODELS.get(model, model))
    figure.legend(*panels[0][-1].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def over_hosts(axes: Any, rows: list[Row], value: Callable[[Row], float]) -> None:
    """One line a way; nothing where a model was not tried at this rate."""
    if not rows:
        axes.set_visible(False)
        return
    for way, style in STYLES.items():
        points = sorted((row["hosts"], value(row)) for row in rows if row["way"] == way)
        if points:
            axes.plot(*zip(*points, strict=True), label=way, linewidth=1.8, markersize=5, **style)
    axes.set_ylim(bottom=0)
    axes.set_xticks(sorted({row["hosts"] for row in rows}))
    tidy(axes)


def main() -> None:
    """Read the figures and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("stragglers", "ring-or-server"))
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="the picture, .png or .svg")
    options = parser.parse_args()
    told = [json.loads(file.read_text()) for file in options.files]
    if options.what == "stragglers":
        figure = stragglers(told[0])
    else:
        figure = ring_or_server([row for one in told for row in one["rows"]])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=90)


if __name__ == "__main__":
    main()
