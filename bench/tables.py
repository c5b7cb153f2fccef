"""A shard's table on one core: random keys pulled and pushed, beside rows picked from a plain array.

    python bench/tables.py --json tables.json

A table of ``--rows`` rows is made, and its first values, a push and a pull are compared with the reference kernels. In
each round other random keys are pulled and pushed, and other rows are picked from a NumPy array of the same size by the
kernel ``gather_rows`` alone: that is the limit. It is given the numbers of rows, where a table first looks up keys, one
random line each. A push reads and writes a row and its state. "pull of what was pushed" asks for the keys of the push
before, which the caches may still hold, as when a training step ends. ``--memory seen``: that of a table which ranks of
the node look at; ``small-pages``: the same without huge pages. Figures are medians; "fast": the tenth part of the calls
took no longer, which on a machine that others use too is nearer to what it can do. ``goal``: what push and pull of
10,000 keys through a parameter server, messages and all, are to take.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from common import write_json
from hpcps_kernels import load

from hpcps import optim
from hpcps.comm import pages
from hpcps.comm.local import LocalWorld
from hpcps.comm.memory import ProcessMemory
from hpcps.config import Optimizer
from hpcps.first import FirstRows
from hpcps.server.table import Table

PACKAGES = ("hpcps", "numpy", "numba")
GOALS_S = {
    ("push", 1): 1.08e-3,
    ("push", 16): 1.74e-3,
    ("push", 64): 1.98e-3,
    ("pull", 1): 0.2e-3,
    ("pull", 16): 0.34e-3,
    ("pull", 64): 1.4e-3,
}
GOAL_KEYS = 10_000
DEVIATION = 0.1
SPREAD = 0x9E3779B97F4A7C15  # odd: number times this, modulo 2^64, is another key for each number
FILL = 1 << 16
TIMEOUT_S = 60.0
HEADER = """| case | rows x width | keys | time | fast | ns a key | rate | of limit | goal | verified |
|---|---|---:|---:|---:|---:|---:|---:|---:|---|"""


def keys_of(numbers: np.ndarray) -> np.ndarray:
    """Keys all over int64, one a row number."""
    return (numbers.astype(np.uint64) * np.uint64(SPREAD)).astype(np.int64)


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Bench:
    """One table, and a plain array of as many rows."""

    def __init__(self, options: argparse.Namespace, width: int) -> None:
        self.kernels, self.options, self.width = load("cpu"), options, width
        self.rng = np.random.default_rng(0)
        self.first = FirstRows((options.rows, width), 7, DEVIATION)
        self.settings = Optimizer(kind=options.optimizer, learning_rate=0.01)
        before, begin = resident_bytes(), time.perf_counter()
        self.table = self._filled()
        self.fill_s = time.perf_counter() - begin
        self.resident = resident_bytes() - before
        self.plain = np.full((options.rows, width), 0.5, np.float32)
        self.out = np.empty((options.keys, width), np.float32)
        self.gradient = self.rng.standard_normal(self.out.shape, np.float32)
        self.states = len(optim.make(self.settings, self.kernels).init(self.out))

    def _filled(self) -> Table:
        optimizer = optim.make(self.settings, self.kernels)
        seen = None if self.options.memory == "own" else ProcessMemory(LocalWorld(1, TIMEOUT_S).transports()[0])
        table = Table(self.first, np.float32, optimizer, self.kernels, memory=seen)
        nothing = np.zeros((FILL, self.width), np.float32)
        for start in range(0, self.options.rows, FILL):
            keys = keys_of(np.arange(start, min(start + FILL, self.options.rows)))
            table.push(keys, nothing[: len(keys)], 1.0, 1)
        return table

    def wrong(self) -> int:
        """Numbers that differ from the reference kernels': first values, one push, and the pull after it."""
        numbers, reference = self._some(), load("reference")
        keys, wanted = keys_of(numbers), np.empty_like(self.out)
        self.first.fill(wanted, keys, reference)
        differ = int((self.table.pull(keys) != wanted).sum())
        optimizer = optim.make(self.settings, reference)
        state, where = optimizer.init(wanted), np.arange(len(keys))
        optimizer.update_rows(wanted, state, np.zeros_like(wanted), where, 1.0, 1)
        optimizer.update_rows(wanted, state, self.gradient, where, 0.5, 2)
        self.table.push(keys, self.gradient, 0.5, 2)
        return differ + int((self.table.pull(keys) != wanted).sum())

    def rows(self) -> list[dict[str, object]]:
        """What was measured."""
        wrong, times = self.wrong(), self._times()
        limit = median(times["gather_rows"])
        keys, number = self.options.keys, self.width * 4
        moved = {"push": number * (3 + 2 * self.states) + 8}
        found = []
        for case, seconds in times.items():
            taken = median(seconds)
            row = {"case": case, "size": f"{self.options.rows} x {self.width}", "width": self.width, "keys": keys}
            row |= {
                "median_s": taken,
                "fast_s": sorted(seconds)[len(seconds) // 10],
                "ns_per_key": taken / keys * 1e9,
                "optimizer": self.options.optimizer,
            }
            row |= {"rate": keys * moved.get(case, 2 * number + 8) / taken / 1e9, "unit": "GB/s"}
            row |= {"limit": "gather_rows", "fraction": limit / taken, "wrong": wrong}
            if keys == GOAL_KEYS and (case, self.width) in GOALS_S:
                row["goal_s"] = GOALS_S[case, self.width]
            found.append(row)
        return found

    def memory(self) -> dict[str, object]:
        """How much a row takes."""
        count = len(self.table)
        row = {"case": "memory", "size": f"{count} x {self.width}", "width": self.width, "fill_s": self.fill_s}
        row |= {"bytes_per_row": self.table.nbytes / count, "resident_bytes_per_row": self.resident / count}
        return row | {"numbers_bytes_per_row": self.width * 4 * (1 + self.states)}

    def _some(self) -> np.ndarray:
        return self.rng.choice(self.options.rows, self.options.keys, replace=False)

    def _times(self) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {}

        def timed(case: str, call: Callable[[], object]) -> None:
            begin = time.perf_counter()
            call()
            times.setdefault(case, []).append(time.perf_counter() - begin)

        for round_ in range(-2, self.options.rounds):
            picked, pulled, pushed = self._some(), keys_of(self._some()), keys_of(self._some())
            strange = keys_of(self._some() + self.options.rows)
            timed("gather_rows", lambda: self.kernels.gather_rows(self.out, self.plain, picked))  # noqa: B023
            timed("pull", lambda: self.table.pull(pulled, self.out))  # noqa: B023
            timed("push", lambda: self.table.push(pushed, self.gradient, 0.01, 3))  # noqa: B023
            timed("pull of what was pushed", lambda: self.table.pull(pushed, self.out))  # noqa: B023
            timed("pull of unknown keys", lambda: self.table.pull(strange, self.out))  # noqa: B023
            if round_ < 0:
                times.clear()  # compiled and warm
        return times


def show(row: dict[str, object]) -> None:
    """One line of the table."""
    goal = f"{row['goal_s'] * 1e3:.2f} ms" if "goal_s" in row else ""
    verified = f"NO: {row['wrong']} off" if row["wrong"] else "yes"
    times = f"{row['median_s'] * 1e3:.3f} ms | {row['fast_s'] * 1e3:.3f} ms | {row['ns_per_key']:.1f}"
    figures = f"{times} | {row['rate']:.2f} GB/s | {row['fraction']:.2f}"
    print(f"| {row['case']} | {row['size']} | {row['keys']} | {figures} | {goal} | {verified} |", flush=True)


def parse() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--keys", type=int, default=GOAL_KEYS, help="of a push or a pull")
    parser.add_argument("--widths", default="1,16,64")
    parser.add_argument("--optimizer", default="adagrad")
    parser.add_argument("--memory", choices=("own", "seen", "small-pages"), default="own", help="of the table")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> int:
    """Exit status 1 if a result is wrong."""
    options = parse()
    if options.memory == "small-pages":
        pages.HUGE_BYTES = 0
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows: list[dict[str, object]] = []
    memory = []
    print(HEADER)
    for width in map(int, options.widths.split(",")):
        bench = Bench(options, width)
        for row in bench.rows():
            rows.append(row)
            show(row)
        memory.append(bench.memory())
        del bench
    print()
    for row in memory:
        told = f"{row['bytes_per_row']:.0f} bytes a row ({row['resident_bytes_per_row']:.0f} resident)"
        print(
            f"{row['size']}: {told}, {row['numbers_bytes_per_row']} of them its numbers; made in {row['fill_s']:.1f} s"
        )
    if options.json:
        write_json(options.json, PACKAGES, rows + memory)
    return 1 if any(row.get("wrong") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
