"""``hpcps tune``: measures the all-reduces on these ranks and keeps what is fastest."""

from __future__ import annotations

import hpcps_kernels
import numpy as np

from hpcps.collectives import tune
from hpcps.collectives.choice import Choice
from hpcps.collectives.engine import Engine
from hpcps.comm.meeting import Meeting
from hpcps.comm.transport import Transport
from hpcps.errors import ConfigError


def run(transport: Transport, largest_bytes: int) -> str:
    """Measure, keep the table, and return it for people. A collective. Raises ConfigError where it cannot be kept."""
    if transport.size == 1:
        raise ConfigError("tune: one rank alone has nobody to sum with; use --ranks N, or mpirun -n N")
    kernels = hpcps_kernels.load("cpu")
    timings = tune.measure(transport, largest_bytes, kernels)
    table = tune.decide(timings, Choice(), Engine(transport, kernels))
    path = tune.table_path(transport)

    def keep() -> np.ndarray:
        tune.keep(table, timings, path)
        return np.empty(0, np.uint8)

    Meeting(transport).once(keep)
    return _in_words(timings, table, str(path))


def _in_words(timings: list[tune.Timing], table: tune.Table, path: str) -> str:
    names = list(dict.fromkeys(timing.algorithm for timing in timings))
    seconds = {(timing.size_bytes, timing.algorithm): timing.seconds for timing in timings}
    lines = ["bytes".rjust(12) + "".join(f"{name}, us".rjust(18) for name in names)]
    for size in sorted({timing.size_bytes for timing in timings}):
        lines.append(f"{size:12,}" + "".join(f"{seconds[size, name] * 1e6:18,.1f}" for name in names))
    ways = ", then ".join(name if size == 2**62 else f"{name} up to {size:,} bytes" for size, name in table)
    return "\n".join([*lines, f"all-reduce: {ways}", f"kept in {path}"])
