"""What one worker computes: part gradients of its training blocks, and losses of its held-out blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcps import models, parts
from hpcps.data import Block, Csr, find_bad
from hpcps.errors import DataError, HpcpsError, ModelError, NotFiniteError
from hpcps.models import Batch, Model
from hpcps.params import Params
from hpcps.threads import Threads

Array = np.ndarray[Any, Any]
EVALUATION_SAMPLES = 1024
"""Samples of one call of a model's scores."""


class Loader:
    """Brings samples of a block into model input: converted to the training dtype, shifted and scaled."""

    def __init__(self, block: Block, features: int, shift: Array, scale: Array, dtype: str, kernels: Any) -> None:
        self._block = block
        self._shift = shift.astype(dtype)
        self._scale = scale.astype(dtype)
        self._kernels = kernels
        self._features = features
        self._dtype = np.dtype(dtype)
        self._labels_dtype = self._dtype if block.labels.dtype.kind == "f" else block.labels.dtype

    def buffers(self, count: int) -> Batch:
        """Memory for a batch of ``count`` samples."""
        return Batch(np.empty((count, self._features), self._dtype), np.empty(count, self._labels_dtype))

    def load(self, out: Batch, index: Array) -> None:
        """Fill ``out`` with the samples of the given numbers (int64) of the block."""
        samples, labels, index = self._block.near(index)
        if isinstance(samples, Csr):
            columns = (samples.indptr, samples.indices, samples.values)
            self._kernels.gather_csr(out.samples, *columns, index, self._shift, self._scale)
        else:
            self._kernels.gather(out.samples, samples, index, self._shift, self._scale)
        out.labels[:] = labels[index]


@dataclass
class _Part:
    number: int
    block: Block
    loader: Loader
    batch: Batch
    gradient: Params
    order: parts.Order
    loss: float = 0.0


class Worker:
    """The parts of this worker: ``gradients[i]`` (n,) is where owned part i's gradient is written."""

    def __init__(
        self,
        model: Model,
        params: Params,
        plan: parts.Parts,
        loaders: dict[int, Loader],
        blocks: dict[int, Block],
        gradients: list[Array],
        seed: int,
        threads: Threads,
    ) -> None:
        self._model = model
        self._params = params
        self._seed = seed
        self._threads = threads
        self._parts = []
        for number, gradient in zip(plan.owned, gradients, strict=True):
            loader = loaders[number]
            batch = loader.buffers(plan.size(number))
            nothing = np.empty(0, np.int64)
            self._parts.append(_Part(number, blocks[number], loader, batch, params.on(gradient), nothing))

    def shuffle(self, epoch: int) -> None:
        """Draw the order in which this epoch visits each block."""
        for part in self._parts:
            part.order = parts.order(self._seed, epoch, part.number, len(part.block), part.block.window)

    def load(self, batch: int) -> None:
        """Bring the samples of batch number ``batch`` of this epoch into memory."""

        def load(part: _Part) -> None:
            size = len(part.batch.labels)
            part.loader.load(part.batch, part.order[batch * size : (batch + 1) * size])

        for _ in self._threads.each(load, self._parts):
            pass

    def gradients(self) -> Iterator[int]:
        """Compute the loaded parts' gradients side by side; give out each part's position as it is finished."""
        return self._threads.each(self._gradient, range(len(self._parts)))

    def take_losses(self) -> Array:
        """The losses of the owned parts, summed since the last call, (parts,) float64."""
        losses = np.array([part.loss for part in self._parts], np.float64)
        for part in self._parts:
            part.loss = 0.0
        return losses

    def _gradient(self, position: int) -> int:
        part = self._parts[position]
        try:
            loss = self._model.loss_gradient(self._params, part.batch, part.gradient)
            check_finite(loss)
        except NotFiniteError as error:
            raise cause(error, part.block) from error
        part.loss += loss
        return position


@dataclass(frozen=True)
class Score:
    """What evaluation adds up: over samples, the loss and the hits (classifier) or squared errors (regression)."""

    loss: float
    quality: float


def evaluate(model: Model, params: Params, block: Block, loader: Loader) -> Score:
    """The score of one block, summed over its samples in order."""
    loss = quality = 0.0
    for start in range(0, len(block), EVALUATION_SAMPLES):
        index = np.arange(start, min(start + EVALUATION_SAMPLES, len(block)))
        batch = loader.buffers(len(index))
        loader.load(batch, index)
        try:
            loss += model.loss(params, batch)
            check_finite(loss)
        except NotFiniteError as error:
            raise cause(error, block) from error
        if model.can_predict:
            quality += _quality(model, params, batch)
    return Score(loss, quality)


def _quality(model: Model, params: Params, batch: Batch) -> float:
    predicted = models.predict(model.task, model.scores(params, batch.samples))
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
