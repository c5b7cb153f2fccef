"""What one worker computes: part gradients of its training blocks, and losses of its held-out blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import methodcaller

import numpy as np

from hpcps import models, parts
from hpcps.data import Block
from hpcps.device import HOST, Device
from hpcps.errors import ModelError, NotFiniteError
from hpcps.feed import Supply
from hpcps.lane import AnyLane, Lane, Stages, cause, check_finite
from hpcps.loader import Loader, Loaders
from hpcps.models import Array, Model
from hpcps.params import Params
from hpcps.rows import ByTable
from hpcps.sums import Share
from hpcps.tables import Tables
from hpcps.threads import Threads

EVALUATION_SAMPLES = 1024
"""Samples of one call of a model's scores."""


class Worker:
    """The parts of this worker, shared out over its threads, each with a lane of its own.

    ``rest``: the lanes of the epoch under way, if its batches were cut otherwise when it began.
    """

    def __init__(self, lanes: Sequence[AnyLane], threads: Threads, rest: Sequence[AnyLane] = ()) -> None:
        self._lanes = rest or lanes
        self._later = lanes
        self._threads = threads

    def shuffle(self, epoch: int, done: int = 0) -> None:
        """Draw the order in which this epoch visits each block; so many of its batches are done."""
        if done == 0:
            self._lanes = self._later
        for _ in self._threads.each(methodcaller("shuffle", epoch), self._lanes):
            pass

    def load(self, batch: int) -> None:
        """Bring the samples of batch number ``batch`` of this epoch into memory."""
        for _ in self._threads.each(methodcaller("load", batch), self._lanes):
            pass

    def keys(self) -> list[Mapping[str, Array]]:
        """Which rows of each table the loaded batch touches, by part."""
        return [keys for lane in self._lanes for keys in lane.row_keys()]

    def gradients(self) -> Iterator[list[ByTable]]:
        """Compute the loaded parts' gradients, the shares side by side; give out, share after share as they are
        finished, the rows of its parts' gradients, where there are tables."""
        return self._threads.each(methodcaller("compute"), self._lanes)

    @property
    def losses(self) -> Array:
        """The losses of the owned parts, summed since they were last taken, (parts,) float64."""
        return np.concatenate([lane.losses for lane in self._lanes])

    def go_on(self, losses: Array) -> None:
        """Go on with the losses of the owned parts, (parts,), summed so far."""
        start = 0
        for lane in self._lanes:
            count = len(lane.losses)
            lane.losses = losses[start : start + count].copy()
            start += count

    def take_losses(self) -> Array:
        """The losses of the owned parts, summed since the last call, (parts,) float64."""
        return np.concatenate([lane.take_losses() for lane in self._lanes])


def lanes(
    model: Model,
    params: Params,
    how: Loaders,
    plan: parts.Parts,
    supplies: Mapping[int, Supply],
    shares: Sequence[Share],
    stages: Stages | None = None,
) -> list[Lane]:
    """The lanes of a worker that computes gradients, one for each of ``shares``.

    ``stages`` is for a model that has them and whose one part is all that the worker computes.
    """
    numbers = [[plan.owned[position] for position in share.parts] for share in shares]
    return [
        Lane(model, params, how, [supplies[n] for n in own], [plan.size(n) for n in own], share, stages)
        for own, share in zip(numbers, shares, strict=True)
    ]


@dataclass(frozen=True)
class Score:
    """What evaluation adds up: over samples, the loss and the hits (classifier) or squared errors (regression)."""

    loss: float
    quality: float


def evaluate(
    model: Model, params: Params, tables: Tables, block: Block, loader: Loader, device: Device = HOST
) -> Score:
    """The score of one block, summed over its samples in order; ``device``: where parameters and batches are."""
    loss = quality = 0.0
    for start in range(0, len(block), EVALUATION_SAMPLES):
        batch = loader.load(np.arange(start, min(start + EVALUATION_SAMPLES, len(block))))
        tables.fetch(batch)
        seen = tables.pick(params, batch)
        try:
            loss += model.loss(seen, batch)
            check_finite(loss)
        except NotFiniteError as error:
            raise cause(error, block) from error
        if model.can_predict:
            quality += _quality(model, device.read(model.scores(seen, batch.samples)), device.read(batch.labels))
    return Score(loss, quality)


def _quality(model: Model, scores: Array, labels: Array) -> float:
    predicted = models.predict(model, scores)
    if predicted.shape != labels.shape:
        raise ModelError(f"the scores of {len(labels)} samples gave {predicted.shape} predictions")
    if model.task == "regression":
        return float(np.square(predicted.astype(np.float64) - labels).sum())
    return float((predicted == labels).sum())
