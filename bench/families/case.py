"""One thing that is timed, and how two results are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from hpcps_kernels import SPECS

Array = np.ndarray[Any, Any]
Call = Callable[[], Any]
Operands = Callable[[], list[tuple[Array, ...]]]  # made anew for every side; calls take one set after another in turn

MIB = 2**20
FLOAT_TOLERANCE = 1e-5  # of the largest magnitude


class Verdict(NamedTuple):
    """How many elements are off, and what else the results tell."""

    wrong: int
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One row. ``ours`` makes our call from a table of kernels, ``peers`` make the peers' calls.

    Each makes operands of its own, the same ones; what the calls return the first time is compared by ``verify``. A
    peer that raises ImportError is not installed. ``work`` is what one call does: bytes, operations, rows or keys;
    bytes are counted as STREAM does, each array once if it is read and once if it is written.
    """

    name: str
    size: str
    work: float
    ours: Callable[[Any], Call]
    peers: Mapping[str, Callable[[], Call]] = field(default_factory=dict)
    unit: str = "GB/s"
    limit: str = "stream"
    goal: float = 1.0
    verify: Callable[[Any, Any], Verdict] = lambda ours, peer: Verdict(differing(ours, peer))


def within(tolerance: float) -> Callable[[Any, Any], Verdict]:
    """A ``verify`` that allows differences of ``tolerance`` times the largest magnitude."""
    return lambda ours, peer: Verdict(differing(ours, peer, tolerance))


def differing(ours: Any, peer: Any, tolerance: float = FLOAT_TOLERANCE) -> int:
    """The number of elements that differ; ``ours`` and ``peer`` are numbers, arrays or tuples of them."""
    if isinstance(ours, tuple):
        return sum(differing(a, b, tolerance) for a, b in zip(ours, peer, strict=True))
    mine, theirs = np.asarray(ours), np.asarray(peer)
    if mine.size != theirs.size:
        return max(mine.size, 1)
    mine = mine.reshape(theirs.shape)
    if mine.dtype.kind in "iu":
        return int(np.count_nonzero(mine != theirs))
    largest = float(np.abs(theirs).max(initial=0.0))
    close = np.abs(mine - theirs) <= tolerance * largest  # a nan is never close
    return int(mine.size - np.count_nonzero(close))


def kernel(name: str, operands: Operands, *scalars: Any) -> Callable[[Any], Call]:
    """Our side: the kernel on operands in its signature's order. A call gives what is written, or what is returned."""

    def make(kernels: Any) -> Call:
        function = getattr(kernels, name)
        written = [i for i, argument in enumerate(SPECS[name].arrays) if argument.is_written]
        sets = cycle([(s, result(s, written)) for s in operands()])

        def call() -> Any:
            arrays, outputs = next(sets)
            returned = function(*arrays, *scalars)
            return returned if outputs is None else outputs

        return call

    def result(arrays: tuple[Array, ...], written: list[int]) -> Any:
        outputs = tuple(arrays[i] for i in written if arrays[i].size)
        return (outputs if len(outputs) > 1 else outputs[0]) if outputs else None

    return make


def numpy(operands: Operands, function: Callable[..., Any]) -> Callable[[], Call]:
    """A peer: a function of the operands."""

    def make() -> Call:
        sets = cycle(operands())
        return lambda: function(*next(sets))

    return make


def torch(operands: Operands, function: Callable[..., Any]) -> Callable[[], Call]:
    """A peer: a function of the module torch and of the operands as tensors."""

    def make() -> Call:
        import torch as library

        sets = cycle([[library.from_numpy(x) for x in arrays] for arrays in operands()])

        def call() -> Any:
            with library.no_grad():
                return function(library, *next(sets))

        return call

    return make


def floats(seed: int, *shape: int) -> Array:
    """Standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)
