"""Gradients and parameters that other ranks read: written in place, or past the caches.

    mpiexec -n 2 python bench/published.py

What a step of a sharded update does for a layer of a perceptron: each rank computes the gradient of all weights from
its samples (kernel ``gemm_tn``), gets the sum of its chunk, updates its chunk of the weights, with momentum (past the
caches by kernel ``stream``), and reads the other ranks'. Steps of both ways in turn, each way for some steps, as what
one has cached is the other's next cost. Medians of the first rank, beside NumPy's copy of a chunk in its own memory.
Ranks whose cores share a cache, and ranks whose cores do not, differ tenfold: start it several times, or bind the
ranks. Exit status 1 if a parameter is wrong.
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
PHASES = ("gradient", "its sum", "update", "others' parameters")


def timed(call: Callable[[], object], seconds: list[float]) -> None:
    """Make the call, and note how long it took."""
    began = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - began)


def main() -> int:
    """The table, on the first rank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=128, help="of each rank")
    parser.add_argument("--inputs", type=int, default=784)
    parser.add_argument("--units", type=int, default=512)
    options = parser.parse_args()
    inputs, units = options.inputs, options.units
    count = inputs * units
    transport, kernels = mpi.world(60.0), hpcps_kernels.load("cpu")
    engine, optimizer = Engine(transport, kernels), optim.make(OPTIONS, kernels)
    gradient, params = (transport.empty(count, np.float32) for _ in range(2))
    part = engine.chunk(count)
    mine, summed = params[part], gradient[part]
    aside, expected = aligned.zeros(len(mine), np.float32), aligned.zeros(len(mine), np.float32)
    expected_sum = np.empty_like(expected)
    state, expected_state = optimizer.init(mine), optimizer.init(expected)
    in_place, apart = (optimizer.prepare(array, state, summed, 1.0) for array in (mine, aside))
    check, stream = optimizer.prepare(expected, expected_state, expected_sum, 1.0), kernels.stream.bind(mine, aside)
    copied = np.empty_like(expected)
    scatter, gather = engine.prepare_reduce_scatter(gradient), engine.prepare_all_gather(params)
    samples, delta = (aligned.empty((options.samples, width), np.float32) for width in (inputs, units))
    samples[:] = 1.0
    kept = np.array([0, count])
    product = partial(kernels.gemm_tn, gradient.reshape(units, inputs), delta, samples, kept)

    def past(step: int) -> None:
        apart(step)
        stream()

    ways = (("in place", in_place, (0, count)), ("past the caches", past, (part.start, part.stop)))
    found: dict[str, tuple[list[float], ...]] = {name: tuple([] for _ in PHASES) for name, _, _ in ways}
    copies: list[float] = []
    step = 0
    params[:] = 0.0
    for turn in range(2 * TURNS):
        name, update, kept[:] = ways[turn % 2]
        aside[:] = mine
        for number in range(STEPS):
            step += 1
            delta[:] = step % 7
            expected_sum[:] = step % 7 * options.samples * transport.size
            transport.barrier()
            notes = tuple([] for _ in PHASES) if number < WARM_UPS else found[name]
            timed(product, notes[0])
            transport.barrier()
            timed(lambda: scatter().wait(), notes[1])
            timed(partial(update, step), notes[2])
            transport.barrier()
            timed(lambda: gather().wait(), notes[3])
            check(step)
            timed(partial(np.copyto, copied, expected), copies)
    wrong = int(np.count_nonzero(mine != expected)) + int(np.count_nonzero(params != params[0]))
    if transport.rank == 0:
        print(f"{len(mine):,} of {count:,} parameters; a copy of them by NumPy {_us(copies)}\n")
        print(f"| way | {' | '.join(PHASES)} | all |\n|---|{'---:|' * (len(PHASES) + 1)}")
        for name, phases in found.items():
            together = [sum(steps) for steps in zip(*phases, strict=True)]
            print(f"| {name} | {' | '.join(map(_us, (*phases, together)))} |")
        print(f"\nwrong: {wrong}")
    return int(wrong > 0)


def _us(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e6:,.0f} us"


if __name__ == "__main__":
    sys.exit(main())
