"""The batches of an epoch: which samples each holds, and as few calls as possible to load them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

import numpy as np

from hpcps import parts
from hpcps.data import Block, joined
from hpcps.loader import DenseLoader, Loader, Loaders
from hpcps.models import Batch
from hpcps.parts import Draw, Order


class Supply(NamedTuple):
    """Where the samples of a part come from: a block, and what draws the order in which an epoch visits it."""

    block: Block
    draw: Draw


def supplies(blocks: Mapping[int, Block], seed: int) -> dict[int, Supply]:
    """Every part's own block, by part."""
    return {
        part: Supply(block, partial(parts.order, seed, block=part, count=len(block), window=block.window))
        for part, block in blocks.items()
    }


class Feed(Protocol):
    """Loads the samples of one or more blocks, one after the other in a batch."""

    def begin(self, orders: Sequence[Order]) -> None:
        """Begin an epoch that visits the samples of each block in these orders."""

    def load(self, number: int) -> Batch:
        """Batch ``number`` of the epoch. Valid until the next call, which may give the same batch with other contents.
        Raises DataError."""


def feeds(how: Loaders, blocks: Sequence[Block], sizes: Sequence[int]) -> list[Feed]:
    """What loads batches of ``sizes[i]`` samples of ``blocks[i]``: one feed for all of them where samples are dense,
    else one a block."""
    if len(blocks) == 1 or how.tables.names:
        return [Single(how.of(block), size) for block, size in zip(blocks, sizes, strict=True)]
    whole = joined(blocks)
    if whole is None:
        feed: Feed = how.uploaded(Separate(blocks, how.on_host, sizes))
        return [feed]
    return [Joined(how.of(whole), [len(block) for block in blocks], sizes)]


class Single:
    """Samples of one block."""

    def __init__(self, loader: Loader, size: int) -> None:
        self._loader = loader
        self._size = size
        self._order: Order = np.empty(0, np.int64)

    def begin(self, orders: Sequence[Order]) -> None:
        (self._order,) = orders

    def load(self, number: int) -> Batch:
        return self._loader.load(self._order[number * self._size : (number + 1) * self._size])


class Joined:
    """Samples of blocks of ``counts[i]`` samples that lie one after the other in the loader's block: one call."""

    def __init__(self, loader: Loader, counts: Sequence[int], sizes: Sequence[int]) -> None:
        self._loader = loader
        self._starts = [0, *accumulate(counts)]
        self._bounds = [0, *accumulate(sizes)]
        self._visits = np.empty((min(n // size for n, size in zip(counts, sizes, strict=True)), sum(sizes)), np.int64)

    def begin(self, orders: Sequence[Order]) -> None:
        for number, (low, high) in enumerate(pairwise(self._bounds)):
            visits = self._visits[:, low:high]
            visits[:] = orders[number][: visits.size].reshape(visits.shape)
            visits += self._starts[number]

    def load(self, number: int) -> Batch:
        return self._loader.load(self._visits[number])


class Separate:
    """Dense samples of blocks that are loaded one by one, into one batch."""

    def __init__(self, blocks: Sequence[Block], how: Loaders, sizes: Sequence[int]) -> None:
        self._whole = whole = how.room(blocks[0], sum(sizes))
        bounds = pairwise([0, *accumulate(sizes)])
        rooms = [Batch(whole.samples[low:high], whole.labels[low:high]) for low, high in bounds]
        loaders = [DenseLoader(block, how, room) for block, room in zip(blocks, rooms, strict=True)]
        self._parts = [Single(loader, size) for loader, size in zip(loaders, sizes, strict=True)]

    def begin(self, orders: Sequence[Order]) -> None:
        for part, order in zip(self._parts, orders, strict=True):
            part.begin([order])

    def load(self, number: int) -> Batch:
        for part in self._parts:
            part.load(number)
        return self._whole
