"""Parameters that other ranks read: updated in place, or aside and past the caches (kernel ``stream``).

    mpiexec -n 2 python bench/published.py

What a step of a sharded update does after the gradients: each rank gets the sum of its chunk, updates its chunk of the
parameters, with momentum, and reads the other ranks'. Steps of both ways in turn, each way for some steps, as what one
has cached is the other's next cost. Medians of the first rank, beside NumPy's copy of a chunk in its own memory. Ranks
whose cores share a cache, and ranks whose cores do not, differ tenfold: start it several times, or bind the ranks.
Exit status 1 if a parameter is wrong.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import hpcps_kernels
import numpy as np

from hpcps import aligned, optim
from hpcps.collectives.engine import Engine
from hpcps.comm import mpi
from hpcps.config import Optimizer

TURNS, STEPS, WARM_UPS = 8, 20, 5
OPTIONS = Optimizer(kind="sgd", learning_rate=0.01, momentum=0.9)


def timed(call: Callable[[], object], seconds: list[float]) -> None:
    """Make the call, and note how long it took."""
    began = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - began)


def main() -> int:
    """The table, on the first rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=401_408, help="float32, in all: the first layer of 784 x 512")
    count = parser.parse_args().parameters
    transport, kernels = mpi.world(60.0), hpcps_kernels.load("cpu")
    engine, optimizer = Engine(transport, kernels), optim.make(OPTIONS, kernels)
    gradient, params = transport.empty(count, np.float32), transport.empty(count, np.float32)
    part = engine.chunk(count)
    mine, summed = params[part], gradient[part]
    aside, expected = aligned.zeros(len(mine), np.float32), aligned.zeros(len(mine), np.float32)
    state, expected_state = optimizer.init(mine), optimizer.init(expected)
    in_place, apart = (optimizer.prepare(array, state, summed, 1.0) for array in (mine, aside))
    check, stream = optimizer.prepare(expected, expected_state, summed, 1.0), kernels.stream.bind(mine, aside)
    copied = np.empty_like(expected)
    scatter, gather = engine.prepare_reduce_scatter(gradient), engine.prepare_all_gather(params)

    def past(step: int) -> None:
        apart(step)
        stream()

    found: dict[str, tuple[list[float], list[float]]] = {"in place": ([], []), "past the caches": ([], [])}
    sums, copies, step = [], [], 0
    for turn in range(2 * TURNS):
        name, update = (("in place", in_place), ("past the caches", past))[turn % 2]
        aside[:] = mine
        for number in range(STEPS):
            step += 1
            gradient[:] = step % 7
            transport.barrier()
            notes = [[], [], [], []] if number < WARM_UPS else [sums, *found[name], copies]
            timed(lambda: scatter().wait(), notes[0])
            timed(partial(update, step), notes[1])
            transport.barrier()
            timed(lambda: gather().wait(), notes[2])
            check(step)
            timed(partial(np.copyto, copied, expected), notes[3])
    wrong = int(np.count_nonzero(mine != expected)) + int(np.count_nonzero(params != params[0]))
    if transport.rank == 0:
        size = f"{len(mine):,} of {count:,} parameters"
        print(f"{size}; a copy of them by NumPy {_us(copies)}, their sum over {transport.size} ranks {_us(sums)}\n")
        print("| way | update | others' parameters | both |\n|---|---:|---:|---:|")
        for name, (updates, gathers) in found.items():
            both = [one + other for one, other in zip(updates, gathers, strict=True)]
            print(f"| {name} | {_us(updates)} | {_us(gathers)} | {_us(both)} |")
        print(f"\nwrong: {wrong}")
    return int(wrong > 0)


def _us(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e6:,.0f} us"


if __name__ == "__main__":
    sys.exit(main())
