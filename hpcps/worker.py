"""What one worker computes: part gradients of its training blocks, and losses of its held-out blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from hpcps import models, parts
from hpcps.data import Block, find_bad
from hpcps.errors import DataError, HpcpsError, ModelError, NotFiniteError
from hpcps.loader import Loader
from hpcps.models import Array, Arrays, Batch, Model
from hpcps.params import Params
from hpcps.rows import ByTable
from hpcps.tables import Tables, as_rows, room_for_rows
from hpcps.threads import Threads

EVALUATION_SAMPLES = 1024
"""Samples of one call of a model's scores."""


@dataclass
class _Part:
    number: int
    block: Block
    loader: Loader
    gradient: Params
    order: parts.Order
    batch: Batch
    rows: ByTable
    loss: float = 0.0


class Worker:
    """The parts of this worker: ``gradients[i]`` (n,) is where owned part i's dense gradient is written."""

    def __init__(
        self,
        model: Model,
        params: Params,
        tables: Tables,
        plan: parts.Parts,
        loaders: dict[int, Loader],
        blocks: dict[int, Block],
        gradients: list[Array],
        seed: int,
        threads: Threads,
    ) -> None:
        self._model = model
        self._params = params
        self._tables = tables
        self._plan = plan
        self._seed = seed
        self._threads = threads
        nothing = np.empty(0, np.int64)
        self._parts = [
            _Part(number, blocks[number], loaders[number], params.dense.on(gradient), nothing, Batch(None, nothing), {})
            for number, gradient in zip(plan.owned, gradients, strict=True)
        ]

    def shuffle(self, epoch: int) -> None:
        """Draw the order in which this epoch visits each block."""
        for part in self._parts:
            part.order = parts.order(self._seed, epoch, part.number, len(part.block), part.block.window)

    def load(self, batch: int) -> None:
        """Bring the samples of batch number ``batch`` of this epoch into memory."""

        def load(part: _Part) -> None:
            size = self._plan.size(part.number)
            part.batch = part.loader.load(part.order[batch * size : (batch + 1) * size])

        for _ in self._threads.each(load, self._parts):
            pass

    def keys(self) -> list[Mapping[str, Array]]:
        """Which rows of each table the loaded batch touches, by part."""
        return [part.batch.keys for part in self._parts]

    def gradients(self) -> Iterator[tuple[int, ByTable]]:
        """Compute the loaded parts' gradients side by side; give out each part's position, and the rows of its
        gradient, as it is finished."""
        return self._threads.each(self._gradient, range(len(self._parts)))

    def take_losses(self) -> Array:
        """The losses of the owned parts, summed since the last call, (parts,) float64."""
        losses = np.array([part.loss for part in self._parts], np.float64)
        for part in self._parts:
            part.loss = 0.0
        return losses

    def _gradient(self, position: int) -> tuple[int, ByTable]:
        part = self._parts[position]
        params, out, batch = self._params, part.gradient, part.batch
        try:
            if not self._tables.names:
                loss = self._model.loss_gradient(params, batch, out)
            else:
                rows = room_for_rows(params, batch)
                loss = self._model.loss_gradient(self._tables.pick(params, batch), batch, {**out, **rows})
                part.rows = as_rows(batch, rows)
            check_finite(loss)
        except NotFiniteError as error:
            raise cause(error, part.block) from error
        part.loss += loss
        return position, part.rows


@dataclass(frozen=True)
class Score:
    """What evaluation adds up: over samples, the loss and the hits (classifier) or squared errors (regression)."""

    loss: float
    quality: float


def evaluate(model: Model, params: Params, tables: Tables, block: Block, loader: Loader) -> Score:
    """The score of one block, summed over its samples in order."""
    loss = quality = 0.0
    for start in range(0, len(block), EVALUATION_SAMPLES):
        batch = loader.load(np.arange(start, min(start + EVALUATION_SAMPLES, len(block))))
        seen = tables.pick(params, batch)
        try:
            loss += model.loss(seen, batch)
            check_finite(loss)
        except NotFiniteError as error:
            raise cause(error, block) from error
        if model.can_predict:
            quality += _quality(model, seen, batch)
    return Score(loss, quality)


def _quality(model: Model, params: Arrays, batch: Batch) -> float:
    predicted = models.predict(model, model.scores(params, batch.samples))
    if predicted.shape != batch.labels.shape:
        raise ModelError(f"the scores of {len(batch.labels)} samples gave {predicted.shape} predictions")
    if model.task == "regression":
        return float(np.square(predicted.astype(np.float64) - batch.labels).sum())
    return float((predicted == batch.labels).sum())


def check_finite(loss: float) -> None:
    """Raise NotFiniteError unless the loss is a number."""
    if not math.isfinite(loss):
        raise NotFiniteError(f"the loss is {loss}; a smaller optimizer.learning_rate or data.scale may help")


def cause(error: NotFiniteError, block: Block) -> HpcpsError:
    """Why a loss or gradient is not finite: a sample of the block that is not, if there is one, else ``error``."""
    bad = find_bad(block)
    return DataError(bad) if bad is not None else error
