"""What people see of a run while it goes on and at its end, and the metrics that stay. Rank 0 only."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol, TextIO

import numpy as np

from hpcps.comm import launcher
from hpcps.comm.launcher import TERMINAL_VARIABLE
from hpcps.config import Config
from hpcps.data import Dataset
from hpcps.errors import WARNING
from hpcps.models import Model
from hpcps.pace import Straggler
from hpcps.run_folder import RunFolder
from hpcps.snapshot import Snapshot
from hpcps.worker import Score

Array = np.ndarray[Any, Any]

MOST_STRAGGLERS = 3
"""Of those that a line names"""


@dataclass(frozen=True)
class Measures:
    """What a report says; None is not said. Losses are means over samples."""

    loss: float | None = None
    samples_per_s: float | None = None
    test_loss: float | None = None
    accuracy: float | None = None
    rmse: float | None = None
    idle: tuple[float, ...] | None = None
    """Of the training time of each worker, the part that it has waited for shards"""
    sent_bytes: int | None = None
    received_bytes: int | None = None
    requests_per_s: float | None = None
    """Of all workers, to shards"""
    gradient_rows: int | None = None
    pushed_rows: int | None = None
    """Of all workers, where rows are kept back"""
    stragglers: tuple[Straggler, ...] | None = None
    dropped_pushes: tuple[int, ...] | None = None
    skipped_steps: tuple[int, ...] | None = None
    """Of each worker, where a step goes on without those that are late"""

    def with_training(self, loss: float, samples_per_s: float) -> Measures:
        """The same, with the training loss and speed since the last report."""
        return replace(self, loss=loss, samples_per_s=samples_per_s)

    def with_traffic(self, told: Array, with_late: bool = False) -> Measures:
        """The same, with what the workers have had to do with shards since the last report: a row a worker of training
        seconds, and of the numbers of ``Traffic``. ``with_late``: and with how late they were."""
        train_s, waited_s, sent, received, requests = np.maximum(told[:, :5], 1e-9).T
        rows, pushed, *_ = told[:, 5:].sum(axis=0)
        dropped, skipped = (tuple(map(int, column)) for column in told[:, 7:].T)
        return replace(
            self,
            idle=tuple(np.minimum(1.0, waited_s / train_s).round(4).tolist()),
            sent_bytes=int(sent.sum()),
            received_bytes=int(received.sum()),
            requests_per_s=round(float(requests.sum() / train_s.max()), 1),
            gradient_rows=int(rows) if rows else None,
            pushed_rows=int(pushed) if rows else None,
            dropped_pushes=dropped if with_late else None,
            skipped_steps=skipped if with_late else None,
        )

    @classmethod
    def as_said(cls, said: Mapping[str, Any]) -> Measures:
        """What :meth:`said` gave."""
        known = {field.name: said[field.name] for field in fields(cls) if field.name in said}
        for name in ("idle", "dropped_pushes", "skipped_steps"):
            if name in known:
                known[name] = tuple(known[name])
        if "stragglers" in known:
            known["stragglers"] = tuple(Straggler(**one) for one in known["stragglers"])
        return cls(**known)

    def said(self) -> dict[str, Any]:
        """What is known, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def measures(model: Model, score: Score, samples: int) -> Measures:
    """The means of a score over ``samples``."""
    loss = score.loss / samples
    if not model.can_predict:
        return Measures(test_loss=loss)
    if model.task == "regression":
        return Measures(test_loss=loss, rmse=math.sqrt(score.quality / samples))
    return Measures(test_loss=loss, accuracy=score.quality / samples)


def opening(config: Config, dataset: Dataset, parameters: int, strategy: str) -> None:
    """Say what is about to be trained, in two lines."""
    classes = "" if dataset.classes is None else f", {len(dataset.classes)} classes"
    held_out = f", {dataset.test_count:,} held out" if dataset.test_count else ""
    print(f"{dataset.name}: {dataset.train_count:,} samples{held_out}, {dataset.features:,} features{classes}")
    print(f"{config.model.kind}: {parameters:,} parameters; strategy {strategy}", flush=True)


def resuming(snapshot: Snapshot | None) -> None:
    """Say where a run goes on, if it does."""
    if snapshot is not None:
        print(f"going on after step {snapshot.position.steps}: {snapshot.source}", flush=True)


def note(text: str, is_first: bool) -> None:
    """Say something that may explain what people see, on the first rank."""
    if is_first:
        print(f"note: {text}", flush=True)


def warn(text: str) -> None:
    """Say that something went wrong with which training goes on. In one piece: other ranks may speak at that time."""
    sys.stdout.flush()
    sys.stderr.write(f"{WARNING}{text}\n")
    sys.stderr.flush()


class Reporter(Protocol):
    """Takes the reports of a run."""

    def tick(self, step: int) -> None:
        """Told after every step, and therefore quick."""

    def report(self, step: int, epoch: int, train_s: float, measures: Measures) -> None:
        """One report: after ``step`` steps, in ``epoch`` (from 1), ``train_s`` seconds of training."""


class Silent:
    """The reporter of all ranks but one."""

    def tick(self, step: int) -> None:
        """Say nothing."""

    def report(self, step: int, epoch: int, train_s: float, measures: Measures) -> None:
        """Say nothing."""


class Lines:
    """A line a report for a log, or a progress bar on a terminal; a line of JSON for the metrics."""

    def __init__(self, folder: RunFolder, epochs: int, steps: int, stream: TextIO | None = None) -> None:
        self._folder = folder
        self._epochs = epochs
        self._steps = steps
        self._stream = stream or sys.stdout
        self._bar = _Bar(steps) if on_terminal(self._stream) else None

    def tick(self, step: int) -> None:
        if self._bar is not None:
            self._bar.tick(step)

    def report(self, step: int, epoch: int, train_s: float, measures: Measures) -> None:
        said = measures.said()
        self._folder.add_metrics({"step": step, "epoch": epoch, "train_s": round(train_s, 6), **said})
        line = f"epoch {epoch}/{self._epochs}  step {step}/{self._steps}  {in_words(said)}"
        for text in [line, *([named(measures.stragglers)] if measures.stragglers else [])]:
            if self._bar is not None:
                self._bar.show(step, text)
            else:
                print(text, file=self._stream, flush=True)


def named(stragglers: Sequence[Straggler]) -> str:
    """Who is slow, on one line.

    >>> named([Straggler(3, "n07", 4.1)])
    'note: rank 3 (n07): 4.1 times slower than the median'
    """
    told = [f"rank {one.rank} ({one.node}): {one.times:g} times slower" for one in stragglers[:MOST_STRAGGLERS]]
    more = len(stragglers) - len(told)
    return f"note: {', '.join(told)} than the median" + (f", and {more} more" if more else "")


def on_terminal(stream: TextIO) -> bool:
    """Whether people look on as ``stream`` is written. Under a launcher only who started it knows: some give every
    rank a terminal of its own, wherever the output goes in the end."""
    told = os.environ.get(TERMINAL_VARIABLE)
    return told == "1" if told else stream.isatty() and launcher.launched(os.environ) is None


class _Bar:
    """A progress bar (rich) under the lines of the reports. It draws when told to: a thread would disturb training."""

    EVERY_S = 0.2

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("step"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(force_terminal=True), transient=True, auto_refresh=False)
        self._task = self._progress.add_task("train", total=steps)
        self._steps = steps
        self._next_s = 0.0
        self._progress.start()

    def tick(self, step: int) -> None:
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + self.EVERY_S
            self._progress.update(self._task, completed=step, refresh=True)

    def show(self, step: int, line: str) -> None:
        self._progress.update(self._task, completed=step)
        self._progress.console.print(line, highlight=False, soft_wrap=True)
        if step >= self._steps:
            self._progress.stop()


_FORMATS = {
    "loss": ("loss", "{:.4f}"),
    "test_loss": ("test loss", "{:.4f}"),
    "accuracy": ("accuracy", "{:.4f}"),
    "rmse": ("rmse", "{:.4g}"),
    "samples_per_s": ("samples/s", "{:,.0f}"),
    "idle": ("idle", "{}"),
    "wall_s": ("seconds", "{:.2f}"),
}


def in_words(values: Mapping[str, Any]) -> str:
    """Measures on one line: ``loss 0.1234  accuracy 0.9500  samples/s 120,000``."""
    values = {**values, **({"idle": _percents(values["idle"])} if values.get("idle") else {})}
    return "  ".join(
        f"{label} {form.format(values[name])}" for name, (label, form) in _FORMATS.items() if name in values
    )


def _percents(parts: Sequence[float]) -> str:
    """The least and the largest part: ``3-12 %``."""
    low, high = (round(100 * part) for part in (min(parts), max(parts)))
    return f"{low} %" if low == high else f"{low}-{high} %"


def table(summary: Mapping[str, Any], folder: str, stream: TextIO | None = None) -> None:
    """Print the table at the end of a run."""
    from rich.console import Console
    from rich.table import Table

    rows = Table(show_header=False)
    for name, (label, form) in _FORMATS.items():
        if summary.get(name) is not None:
            held_out = "held-out " if name in ("accuracy", "rmse") else ""
            value = _percents(summary[name]) if name == "idle" else summary[name]
            rows.add_row(held_out + label, form.format(value))
    rows.add_row("steps", f"{summary['steps']:,}")
    if summary.get("shards"):
        rows.add_row("staleness", _staleness(summary["shards"]))
    if summary.get("dropped_pushes"):
        rows.add_row("late", _late(summary))
    rows.add_row("ranks", _ranks(summary))
    rows.add_row("strategy", str(summary["strategy"]))
    Console(file=stream or sys.stdout).print(rows)
    print(f"params_sha256 {summary['params_sha256']}", file=stream)
    print(f"files         {folder}", file=stream, flush=True)


def _staleness(shards: Sequence[Mapping[str, Any]]) -> str:
    """The mean and the largest age of a gradient, in updates by other workers."""
    ages = [(int(age), pushes) for shard in shards for age, pushes in shard["staleness"].items()]
    total = sum(pushes for _, pushes in ages)
    return f"mean {sum(age * pushes for age, pushes in ages) / max(1, total):.2f}, largest {max(ages)[0]}"


def _late(summary: Mapping[str, Any]) -> str:
    """What workers that were late have left out."""
    pushed = sum(pushes for shard in summary["shards"] for pushes in shard["staleness"].values())
    dropped, steps = sum(summary["dropped_pushes"]), len(summary["skipped_steps"]) * summary["steps"]
    return f"{dropped} of {dropped + pushed} pushes dropped, {sum(summary['skipped_steps'])} of {steps} steps skipped"


def _ranks(summary: Mapping[str, Any]) -> str:
    servers = f" ({summary['workers']} workers, {summary['servers']} servers)" if summary.get("servers") else ""
    return f"{summary['ranks']}{servers}, {summary['transport']}"
