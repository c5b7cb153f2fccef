"""The figures of ``bench/allreduce.py``: times, bandwidths, ratios, and how they are shown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

KIB, MIB = 1 << 10, 1 << 20
FIRST_SIZE, LAST_SIZE, MEMORY_SIZE = 4 * KIB, 256 * MIB, 16 * MIB
"""Ratios to peers are of these sizes; the memory's limit counts from the last one up."""
TUNED = ", best tuned"
OURS, LIMIT = "hpcps", "memcpy"
HEADER = """\
      size      count     type        time         p99    algbw    busbw  calls  #wrong
       (B)    (elem.)                 (us)        (us)   (GB/s)   (GB/s)"""


@dataclass
class Figure:
    """One contender's calls of one size; ``seconds`` of the slowest rank of each."""

    case: str
    size: int
    count: int
    dtype: str
    ranks: int
    seconds: list[float] = field(default_factory=list)
    wrong: int = 0

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p99_s(self) -> float:
        return float(np.quantile(self.seconds, 0.99))

    @property
    def algbw(self) -> float:
        """Array bytes over time, GB/s."""
        return self.size / self.median_s / 1e9

    @property
    def busbw(self) -> float:
        """What each rank must send at least, 2(P - 1)/P of the array, over time, GB/s (as nccl-tests has it)."""
        return self.algbw * 2 * (self.ranks - 1) / self.ranks

    def line(self) -> str:
        """One line under HEADER."""
        times = f"{self.median_s * 1e6:11.2f} {self.p99_s * 1e6:11.2f} {self.algbw:8.3f} {self.busbw:8.3f}"
        return f"{self.size:10} {self.count:10} {self.dtype:>8} {times} {len(self.seconds):6} {self.wrong:7}"


@dataclass
class Figures:
    """All contenders' figures, by name and size; ``missing`` says why a contender has none."""

    by_case: dict[str, dict[int, Figure]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    def add(self, case: str, dtype: str, told: list[dict[str, object]]) -> None:
        """What the ranks of one job saw."""
        figures = self.by_case.setdefault(case, {})
        self.about[case] = str(told[0]["about"])
        for rows in zip(*(rank["rows"] for rank in told), strict=True):
            size = rows[0]["size"]
            new = Figure(case, size, size // np.dtype(dtype).itemsize, dtype, len(told))
            figure = figures.setdefault(size, new)
            figure.seconds += map(max, zip(*(row["seconds"] for row in rows), strict=True))
            figure.wrong += sum(row["wrong"] for row in rows)

    def lose(self, case: str, why: str) -> None:
        """A contender that does not run here."""
        self.by_case.pop(case, None)
        self.missing[case] = why

    def choose_tuned(self, libraries: Iterable[str]) -> None:
        """After each MPI library: at each size the fastest of its settings, the default among them."""
        ordered: dict[str, dict[int, Figure]] = {}
        for case, of in self.by_case.items():
            ordered[case] = of
            settings = [its for name, its in self.by_case.items() if name.startswith(f"{case}: ")]
            if case in libraries and settings:
                ordered[case + TUNED] = {size: _fastest(its[size] for its in (of, *settings)) for size in of}
        self.by_case = ordered

    def peers(self) -> list[str]:
        """The other ways to sum, each MPI library by its default and its best."""
        return [case for case in self.by_case if ":" not in case and not case.startswith(OURS) and case != LIMIT]

    def shown(self) -> list[str]:
        """The columns of a table or plot."""
        ours = [case for case in self.by_case if case.startswith(OURS)]
        return [*ours, *self.peers(), *(LIMIT,) * (LIMIT in self.by_case)]

    def ratios(self, peer: str, first_size: int = FIRST_SIZE) -> dict[int, float]:
        """How many times as long as hpcps the peer takes, by size."""
        ours, its = self.by_case.get(OURS, {}), self.by_case.get(peer, {})
        sizes = [size for size in ours if size in its and first_size <= size <= LAST_SIZE]
        return {size: its[size].median_s / ours[size].median_s for size in sizes}

    @property
    def wrong(self) -> int:
        """Wrong elements of all contenders."""
        return sum(figure.wrong for of in self.by_case.values() for figure in of.values())

    def rows(self) -> list[dict[str, object]]:
        """One row a contender and size, as every bench writes them."""
        found: list[dict[str, object]] = []
        for case, of in self.by_case.items():
            found += [self._row(case, figure) for figure in of.values()]
        return found + [{"case": case, "size": None, "missing": why} for case, why in self.missing.items()]

    def _row(self, case: str, figure: Figure) -> dict[str, object]:
        row: dict[str, object] = {"case": case, "size": figure.size, "count": figure.count, "dtype": figure.dtype}
        row |= {"ranks": figure.ranks, "calls": len(figure.seconds), "median_s": figure.median_s}
        row |= {"p99_s": figure.p99_s, "algbw": figure.algbw, "busbw": figure.busbw, "wrong": figure.wrong}
        if case != figure.case or TUNED in case:
            row["setting"] = figure.case
        limit = self.by_case.get(LIMIT, {}).get(figure.size)
        if limit and case != LIMIT:
            row |= {"limit": LIMIT, "fraction": limit.median_s / figure.median_s}
        rivals = [self.by_case[peer][figure.size] for peer in self.peers() if figure.size in self.by_case[peer]]
        if case.startswith(OURS) and rivals:
            peer = _fastest(rivals)
            row |= {"peer": peer.case, "peer_s": peer.median_s, "ratio": peer.median_s / figure.median_s}
        return row

    def summary(self, ranks: int) -> list[dict[str, object]]:
        """The ratios that are goals: geometric means over the sizes, and the smallest."""
        found = []
        for peer in [*self.peers(), *(LIMIT,) * (LIMIT in self.by_case)]:
            ratios = self.ratios(peer, MEMORY_SIZE if peer == LIMIT else FIRST_SIZE)
            if ratios:
                at = min(ratios, key=ratios.__getitem__)
                mean = statistics.geometric_mean(ratios.values())
                row: dict[str, object] = {"beside": peer, "from": min(ratios), "to": max(ratios), "mean": mean}
                found.append(row | {"smallest": ratios[at], "at": at} | _goals(peer, ranks))
        return found


def _fastest(figures: Iterable[Figure]) -> Figure:
    return min(figures, key=lambda figure: figure.median_s)


def _goals(peer: str, ranks: int) -> dict[str, float]:
    """What the mean and the smallest ratio should be at least."""
    if peer == LIMIT:
        return {"goal_smallest": 0.9} if ranks == 2 else {}
    if peer == "gloo":
        return {"goal_mean": 8.0} if ranks == 2 else {}
    return {"goal_mean": 3.0, "goal_smallest": 0.95} if ranks == 2 else {"goal_mean": 1.0}


def short(size: int) -> str:
    """A number of bytes, for people.

    >>> short(65536), short(268435456), short(100)
    ('64 KiB', '256 MiB', '100 B')
    """
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def text(figures: Figures) -> Iterator[str]:
    """The lines of a table a contender, as nccl-tests prints them."""
    for case, of in figures.by_case.items():
        if not case.endswith(TUNED):
            ranks = next(iter(of.values())).ranks
            yield f"\n# {case} ({figures.about[case]}), {ranks} ranks\n{HEADER}"
            yield from (figure.line() for figure in of.values())
    yield from (f"\n# {case}: missing: {why}" for case, why in figures.missing.items())


def markdown(figures: Figures) -> Iterator[str]:
    """The lines of one table of times: a row a size, a column a contender."""
    columns = figures.shown()
    yield "| size | " + " | ".join(columns) + " | hpcps busbw, GB/s | fastest peer / hpcps |"
    yield "|---:" * (len(columns) + 3) + "|"
    sizes = sorted({size for case in columns for size in figures.by_case[case]})
    for size in sizes:
        found = [figures.by_case[case].get(size) for case in columns]
        cells = [_microseconds(figure.median_s) if figure else "" for figure in found]
        ours = figures.by_case.get(OURS, {}).get(size)
        ratios = [figures.ratios(peer, 0).get(size) for peer in figures.peers()]
        cells.append(f"{ours.busbw:.2f}" if ours else "")
        cells.append(f"{min(ratio for ratio in ratios if ratio):.2f}" if any(ratios) else "")
        yield f"| {short(size)} | " + " | ".join(cells) + " |"
    yield ""
    yield from (f"{case}: missing: {why}" for case, why in figures.missing.items())
    yield from _settings(figures)


def _settings(figures: Figures) -> Iterator[str]:
    """Which setting was the best at which sizes."""
    for case, of in figures.by_case.items():
        if case.endswith(TUNED):
            sizes: dict[str, list[str]] = {}
            for size, figure in of.items():
                sizes.setdefault(figure.case.partition(": ")[2] or "the default", []).append(short(size))
            yield f"- {case}: " + "; ".join(f"{name} at {', '.join(at)}" for name, at in sizes.items()) + "."


def summary(figures: Figures, ranks: int) -> Iterator[str]:
    """The lines of the table of ratios and goals."""
    yield "| hpcps beside | sizes | geometric mean | goal | smallest | at | goal |\n|---|---|---:|---:|---:|---:|---:|"
    for row in figures.summary(ranks):
        goals = [f"{row[name]:g}" if name in row else "" for name in ("goal_mean", "goal_smallest")]
        sizes = f"{short(row['from'])} - {short(row['to'])}"
        smallest = f"{row['smallest']:.2f} | {short(row['at'])}"
        yield f"| {row['beside']} | {sizes} | {row['mean']:.2f} | {goals[0]} | {smallest} | {goals[1]} |"


def _microseconds(seconds: float) -> str:
    us = seconds * 1e6
    return f"{us:,.1f}" if us < 100 else f"{us:,.0f}"
