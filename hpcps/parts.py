"""How a global batch is cut, and who computes which part.

A part is one kernel call: a *grain*, if the run is reproducible (as many as ``train.grains`` says, whatever the
rank count), else one part a worker thread. Every part draws its samples from a block of the training set of its
own, so that a worker reads only the blocks of its parts, and a batch holds samples of all blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hpcps.comm.topology import chunk, chunk_bounds
from hpcps.errors import ConfigError


@dataclass(frozen=True)
class Parts:
    """Part p has the samples ``bounds[p] .. bounds[p + 1] - 1`` of a batch; this worker computes those ``owned``.

    ``ranges`` holds what every worker owns: worker w the parts ``ranges[w] .. ranges[w + 1] - 1``.
    """

    bounds: list[int]
    ranges: list[int]
    worker: int

    @property
    def owned(self) -> range:
        return range(self.ranges[self.worker], self.ranges[self.worker + 1])

    @property
    def total(self) -> int:
        return len(self.bounds) - 1

    def size(self, part: int) -> int:
        """Samples of a part in each batch."""
        return self.bounds[part + 1] - self.bounds[part]

    @property
    def by_worker(self) -> list[int]:
        """Samples of each worker in each batch."""
        return [self.bounds[high] - self.bounds[low] for low, high in pairwise(self.ranges)]


def grains(batch: int, count: int, worker: int, workers: int) -> Parts:
    """Cut a batch into ``count`` grains, shared out over the workers. Raises ConfigError if a worker gets none.

    >>> grains(256, 16, 1, 3).owned
    range(6, 11)
    """
    if workers > count:
        raise ConfigError(f"train.grains = {count} is fewer than {workers} workers; use more grains or fewer ranks")
    return Parts(chunk_bounds(batch, count), chunk_bounds(count, workers), worker)


def by_threads(batch: int, threads: list[int], worker: int) -> Parts:
    """Cut a batch evenly over the workers, and each worker's share over its ``threads[worker]`` threads.

    >>> by_threads(10, [2, 1], 0).bounds
    [0, 3, 5, 10]
    """
    if batch < len(threads):
        raise ConfigError(f"train.batch = {batch} is fewer than {len(threads)} workers; use a larger batch")
    bounds = [0]
    counts = []
    for number, wanted in enumerate(threads):
        share = chunk(batch, len(threads), number)
        counts.append(min(wanted, len(share)))
        bounds += [share.start + bound for bound in chunk_bounds(len(share), counts[-1])[1:]]
    return Parts(bounds, [0, *accumulate(counts)], worker)


class Stretch(NamedTuple):
    """Of the ``size`` samples that a part has in each batch, those from ``low`` to ``high`` - 1."""

    part: int
    size: int
    low: int
    high: int


def stretches(bounds: Sequence[int], low: int, high: int) -> list[Stretch]:
    """The samples ``low`` .. ``high`` - 1 of a batch, stretch by stretch of the parts that ``bounds`` cuts it into.

    >>> stretches([0, 3, 5, 10], 4, 8)
    [Stretch(part=1, size=2, low=1, high=2), Stretch(part=2, size=5, low=0, high=3)]
    """
    return [
        Stretch(part, stop - start, max(low, start) - start, min(high, stop) - start)
        for part, (start, stop) in enumerate(pairwise(bounds))
        if max(low, start) < min(high, stop)
    ]


class Order(Protocol):
    """The order in which an epoch visits the samples of a block: a slice gives the numbers of consecutive visits."""

    def __getitem__(self, visits: slice, /) -> NDArray[np.int64]: ...


Draw = Callable[[int], Order]
"""Gives the order of an epoch"""


def order(seed: int, epoch: int, block: int, count: int, window: int = 0) -> Order:
    """The order in which an epoch visits the samples of a block: a permutation of ``range(count)``, int64.

    Keyed by (seed, epoch, block) and drawn from Philox (Salmon et al. 2011), so it does not depend on the rank. With a
    ``window``, samples 0 .. window - 1 come first, in an order of their own, then those of the next window, and so on.
    """
    key = np.array([seed, epoch << 32 | block], np.uint64)
    if window:
        return WindowedOrder(key, count, window)
    return np.random.Generator(np.random.Philox(key=key)).permutation(count)


class WindowedOrder:
    """A permutation window after window, each drawn when it is first asked for; one is kept.

    >>> WindowedOrder(np.array([3, 4], np.uint64), 7, 3)[3:5]
    array([4, 5])
    """

    def __init__(self, key: NDArray[np.uint64], count: int, window: int) -> None:
        self._key = key
        self._count = count
        self._window = window
        self._number = -1
        self._drawn = np.empty(0, np.int64)

    def __getitem__(self, visits: slice, /) -> NDArray[np.int64]:
        low, high, _ = visits.indices(self._count)
        pieces = [np.empty(0, np.int64)]
        while low < high:
            number, first = divmod(low, self._window)
            pieces.append(self._draw(number)[first : first + high - low])
            low += len(pieces[-1])
        return np.concatenate(pieces)

    def _draw(self, number: int) -> NDArray[np.int64]:
        if number != self._number:
            bits = np.random.Philox(key=self._key, counter=[0, 0, 0, 1 + number])  # far from each other's draws
            low = number * self._window
            size = min(self._window, self._count - low)
            self._number, self._drawn = number, low + np.random.Generator(bits).permutation(size)
        return self._drawn


class DealtOrder:
    """Batches made of stretches of others: number i takes what ``orders[i]`` visits, counted from ``starts[i]`` on.

    A slice is of whole batches.

    >>> first, second = np.arange(4), np.arange(6)
    >>> DealtOrder([Stretch(0, 2, 1, 2), Stretch(1, 3, 0, 2)], [first, second], [0, 4])[0:6]
    array([1, 4, 5, 3, 7, 8])
    """

    def __init__(self, own: Sequence[Stretch], orders: Sequence[Order], starts: Sequence[int]) -> None:
        self._taken = list(zip(own, orders, starts, strict=True))
        self._size = sum(one.high - one.low for one in own)

    def __getitem__(self, visits: slice, /) -> NDArray[np.int64]:
        first, last = visits.start // self._size, visits.stop // self._size
        found = []
        for one, order, start in self._taken:
            batches = order[first * one.size : last * one.size].reshape(-1, one.size)
            found.append(start + batches[:, one.low : one.high])
        return np.concatenate(found, axis=1).reshape(-1)
