"""A case, verified and timed beside its peers: one row."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

from families.case import Call, Case
from families.limits import Limits

SHORTEST_S = 0.02  # of one measurement: shorter calls are repeated
PER = {"GB/s": 1e9, "GFLOP/s": 1e9, "M rows/s": 1e6, "M keys/s": 1e6, "M ratings/s": 1e6}


@dataclass
class _Side:
    """Ours or a peer: its call, how often a measurement repeats it, and the seconds of one call in each round."""

    name: str
    call: Call
    repeats: int = 1
    seconds: list[float] | None = None

    def calibrate(self) -> None:
        self.repeats, self.seconds = 1, []
        self.once()
        self.repeats = max(1, math.ceil(SHORTEST_S / max(self.seconds.pop(), 1e-7)))

    def once(self) -> None:
        begin = time.perf_counter()
        for _ in range(self.repeats):
            self.call()
        self.seconds.append((time.perf_counter() - begin) / self.repeats)


def measure(case: Case, kernels: Any, limits: Limits, rounds: int) -> dict[str, object]:
    """The row of a case. A kernel or a peer that is not there, or fails, is told in the row."""
    row: dict[str, object] = {"case": case.name, "size": case.size, "limit": case.limit, "goal": case.goal}
    try:
        ours = _Side("hpcps", case.ours(kernels))
        result = ours.call()
    except (AttributeError, ImportError) as error:
        return row | {"missing": _line(error)}
    except Exception as error:  # one case must not end the others
        return row | {"failed": _line(error)}
    peers, absent, wrong, notes = [], {}, 0, []
    for name, make in case.peers.items():
        try:
            peer = _Side(name, make())
            verdict = case.verify(result, peer.call())
        except Exception as error:  # mostly: it is not installed
            absent[name] = _line(error)
            print(f"{case.name}: {name}: {absent[name]}", file=sys.stderr)
            continue
        wrong += verdict.wrong
        notes += [f"{name}: {verdict.note}"] if verdict.note else []
        if verdict.wrong:
            print(f"{case.name}: {verdict.wrong} elements differ from {name}'s", file=sys.stderr)
        peers.append(peer)
    row |= {"wrong": wrong if peers else None, "peers_missing": absent or None, "note": "; ".join(notes) or None}
    return row | _timed(case, ours, peers, limits, rounds)


def _timed(case: Case, ours: _Side, peers: list[_Side], limits: Limits, rounds: int) -> dict[str, object]:
    """All sides in turn, in each round; medians."""
    sides = [ours, *peers]
    for side in sides:
        side.calibrate()
    limited: list[float] = []
    for _ in range(rounds):
        if case.limit != "none":
            limited.append(limits.measure(case.limit))
        for side in sides:
            side.once()
    seconds = {side.name: median(side.seconds) for side in sides}
    own = seconds.pop(ours.name)
    rate = case.work / own / PER[case.unit]
    told: dict[str, object] = {"median_s": own, "min_s": min(ours.seconds), "rate": rate, "unit": case.unit}
    if limited:
        told["fraction"] = rate / median(limited)
    if seconds:
        best = min(seconds, key=seconds.__getitem__)
        told |= {"peer": best, "peer_s": seconds[best], "ratio": seconds[best] / own, "peers": seconds}
        told["peer_min_s"] = next(min(peer.seconds) for peer in peers if peer.name == best)
    return told


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
