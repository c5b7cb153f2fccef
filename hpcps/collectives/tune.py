"""Measures which all-reduce is fastest for how many bytes on these ranks, and keeps the answer for later runs.

One file a layout: ranks, ranks by node, what carries the messages. It lies beside the compiled kernels, where only its
owner can write.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import hpcps_kernels
import numpy as np

from hpcps.collectives.choice import ALGORITHMS, Choice
from hpcps.collectives.engine import Engine
from hpcps.comm.meeting import Meeting
from hpcps.comm.transport import Transport
from hpcps.errors import CommError, ConfigError

SMALLEST_BYTES = 256
BUDGET_S = 0.25
"""For an algorithm at a size, all repetitions."""
REPETITIONS = (5, 200)
"""At least, at most."""
MARGIN = 1.05
"""Another algorithm than the rule's must be so many times faster, so that noise does not decide."""

Table = tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Timing:
    """One measurement: the median over the repetitions of the slowest rank's seconds."""

    size_bytes: int
    algorithm: str
    seconds: float


def table_path(transport: Transport) -> Path:
    """Where the table for these ranks lies. A collective. Raises ConfigError where nothing can be kept."""
    nodes = [len(ranks) for ranks in transport.memory.nodes]
    found = hpcps_kernels.cache_folder()
    if found.folder is None:
        raise ConfigError(f"a table cannot be kept: {found.reason}; set HPCPS_CACHE_DIR to a folder of yours")
    layout = json.dumps([transport.size, nodes, transport.description])
    return found.folder.parent / f"allreduce-{sha256(layout.encode()).hexdigest()[:16]}.json"


def load(transport: Transport) -> Table:
    """The table that was measured for such ranks, or an empty one; the first rank's for all. A collective."""

    nothing = b'{"table": []}'
    try:
        path = table_path(transport)
    except ConfigError:  # nothing can be kept, so nothing has been
        path = None

    def read() -> np.ndarray[Any, Any]:
        try:
            text = path.read_bytes() if path is not None else nothing
            check(json.loads(text)["table"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            text = nothing  # none, or none that can be used: the rule decides
        return np.frombuffer(text, np.uint8)

    told = json.loads(Meeting(transport).once(read).tobytes())
    return tuple((int(size), str(algorithm)) for size, algorithm in told["table"])


def check(rows: Sequence[Sequence[Any]]) -> None:
    """Raise ValueError unless these are rows of a table."""
    sizes = [size for size, algorithm in rows if algorithm in ALGORITHMS and isinstance(size, int)]
    if len(sizes) != len(rows) or sizes != sorted(sizes):
        raise ValueError("no table of all-reduces")


def measure(transport: Transport, largest_bytes: int, kernels: Any) -> list[Timing]:
    """Time every algorithm that can be used, from SMALLEST_BYTES to ``largest_bytes``, times 4 each. A collective; its
    results are checked, and a wrong one is a CommError."""
    layout = Engine(transport, kernels).layout
    usable = [algorithm for algorithm in ALGORITHMS if not layout.why_not(algorithm)]
    engines = {algorithm: Engine(transport, kernels, Choice(algorithm)) for algorithm in usable}
    x = transport.empty(largest_bytes // 4, np.float32)
    found = []
    size = SMALLEST_BYTES
    while size <= largest_bytes:
        found += [_time(engine, name, x[: size // 4]) for name, engine in engines.items()]
        size *= 4
    return found


def _time(engine: Engine, algorithm: str, x: np.ndarray[Any, Any]) -> Timing:
    transport = engine.transport
    meeting = Meeting(transport)
    mine: list[float] = []
    repetitions = REPETITIONS[1]
    while len(mine) < repetitions:
        x.fill(transport.rank + 1)
        transport.barrier()
        started = time.perf_counter()
        engine.allreduce(x)
        mine.append(time.perf_counter() - started)
        if len(mine) == REPETITIONS[0]:
            slowest = float(meeting.gather(np.array([median(mine)])).max())
            repetitions = int(min(REPETITIONS[1], max(REPETITIONS[0], BUDGET_S / slowest)))
    if not (x == transport.size * (transport.size + 1) // 2).all():
        raise CommError(f"{algorithm} summed {x.nbytes} bytes wrongly on rank {transport.rank}")
    by_rank = meeting.gather(np.array(mine)).reshape(transport.size, -1)
    return Timing(x.nbytes, algorithm, float(np.median(by_rank.max(axis=0))))


def decide(timings: Sequence[Timing], rule: Choice, engine: Engine) -> Table:
    """The fastest algorithm for each size, neighbours of one kind joined; the rule's unless another is MARGIN faster. A
    size stands for all up to twice its own; the last has no end."""
    rows: list[tuple[int, str]] = []
    for size in sorted({timing.size_bytes for timing in timings}):
        seconds = {timing.algorithm: timing.seconds for timing in timings if timing.size_bytes == size}
        usual, best = rule.pick(size, engine.layout), min(seconds, key=lambda name: seconds[name])
        chosen = best if seconds[best] * MARGIN < seconds[usual] else usual
        if rows and rows[-1][1] == chosen:
            rows.pop()
        rows.append((2 * size, chosen))
    return (*rows[:-1], (2**62, rows[-1][1]))


def keep(table: Table, timings: Sequence[Timing], path: Path) -> None:
    """Write the table, whole or not at all."""
    told = {"table": table, "timings": [[t.size_bytes, t.algorithm, t.seconds] for t in timings]}
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(told))
    unfinished.replace(path)
