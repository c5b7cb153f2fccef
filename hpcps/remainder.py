"""What is left of an epoch that other workers or threads have begun: its batches stay what they were.

A part draws from a block of its own (:mod:`hpcps.parts`), so a batch that is cut otherwise holds other samples. Until
the epoch is over the parts therefore take over, place by place in the batch, what those of the former cut would have
visited: no sample of the epoch is left out, none comes twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from hpcps.comm.topology import proportional_bounds
from hpcps.data import Dataset, chained
from hpcps.feed import Supply
from hpcps.parts import DealtOrder, Order, Parts, Stretch, order, stretches
from hpcps.snapshot import Position

Drawn = Callable[[int], Order]
"""Gives the order in which the epoch visits the block of a former part"""


def supplies(dataset: Dataset, parts: Parts, position: Position, seed: int, window: int) -> dict[int, Supply]:
    """What the owned parts visit in the epoch under way, from its next batch on; nothing if they have begun it.

    Reads the samples that they are still to visit. Where samples are streamed (``window`` > 0), each part has a window
    in memory for every former part that it takes from. Raises DataError.
    """
    epoch, done = divmod(position.steps, dataset.train_count // parts.bounds[-1])
    if done == 0 or position.cut in ((), tuple(parts.bounds)):
        return {}
    starts = proportional_bounds(dataset.train_count, list(position.cut))
    taken = {part: stretches(position.cut, *parts.bounds[part : part + 2]) for part in parts.owned}

    def drawn(former: int) -> Order:
        return order(seed, epoch, former, starts[former + 1] - starts[former], window)

    if window:
        return {part: _streamed(dataset, own, starts, drawn) for part, own in taken.items()}
    return _in_memory(dataset, parts, taken, starts, cache(drawn), done)


def _streamed(dataset: Dataset, own: Sequence[Stretch], starts: Sequence[int], drawn: Drawn) -> Supply:
    """What a part visits that takes these stretches of former parts: samples of their blocks."""
    blocks = [dataset.read(range(*starts[one.part : one.part + 2])) for one in own]
    visits = _visits(own, [start - starts[own[0].part] for start in starts], drawn)
    return Supply(chained(blocks), lambda epoch: visits)


def _in_memory(
    dataset: Dataset, parts: Parts, taken: dict[int, list[Stretch]], starts: Sequence[int], drawn: Drawn, done: int
) -> dict[int, Supply]:
    """The same for all parts, of one block that holds what is left to visit."""
    steps = dataset.train_count // parts.bounds[-1]
    left = {
        part: _visits(own, starts, drawn)[done * parts.size(part) : steps * parts.size(part)]
        for part, own in taken.items()
    }
    numbers = np.sort(np.concatenate(list(left.values())))
    block = dataset.read(numbers)

    def supply(part: int) -> Supply:
        visited = np.full(done * parts.size(part), -1)  # and no more asked for
        visits = np.concatenate([visited, np.searchsorted(numbers, left[part])])
        return Supply(block, lambda epoch: visits)

    return {part: supply(part) for part in taken}


def _visits(own: Sequence[Stretch], starts: Sequence[int], drawn: Drawn) -> DealtOrder:
    return DealtOrder(own, [drawn(one.part) for one in own], [starts[one.part] for one in own])
