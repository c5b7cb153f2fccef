"""Consecutive parts of a batch that one thread of a worker computes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol, cast

import numpy as np

from hpcps.data import Block, find_bad
from hpcps.errors import DataError, HpcpsError, NotFiniteError
from hpcps.feed import Supply, feeds
from hpcps.loader import Loaders
from hpcps.models import Array, Arrays, Batch, GrainGradients, Model
from hpcps.params import Params
from hpcps.rows import ByTable
from hpcps.sums import Share
from hpcps.tables import as_rows

Ready = Callable[[int], None]
"""What a model with ``stages`` calls with the number of a stage whose gradients are final."""


class Stages(NamedTuple):
    """For a model with ``stages``, whose one part is all that the worker computes."""

    ready: Ready
    kept: Mapping[str, Array]
    """Which numbers of a parameter's gradient this rank reads itself, (2,): see :class:`hpcps.published.Kept`"""


Call = Callable[[], float]
"""Computes a part's gradient; returns its loss"""

NO_BATCH = Batch(np.empty((0, 0)), np.empty(0))


class AnyLane(Protocol):
    """What one thread computes, batch after batch."""

    def shuffle(self, epoch: int) -> None:
        """Draw the order in which this epoch visits each block."""

    def load(self, number: int) -> None:
        """Bring batch ``number`` of this epoch into memory."""

    def row_keys(self) -> list[Mapping[str, Array]]:
        """Which rows of each table the loaded parts touch."""

    def compute(self) -> list[ByTable]:
        """Compute the loaded parts; returns the rows of each part's gradient, if there are tables."""

    losses: Array
    """Of the parts, summed since they were last taken, (parts,) float64"""

    def take_losses(self) -> Array:
        """The losses of the parts, summed since the last call, (parts,) float64."""


class Lane:
    """Parts of ``sizes`` samples a batch, each from its own of ``supplies``.

    Dense gradients go where the ``share`` says, added up as it says. A model that has ``grain_gradients`` computes all
    parts of a reproducible run in one call; any other is called part by part. ``stages``: for a model that has them.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        how: Loaders,
        supplies: Sequence[Supply],
        sizes: Sequence[int],
        share: Share,
        stages: Stages | None = None,
    ) -> None:
        self._stages = stages
        self._model = model
        self._params = params
        self._tables = how.tables
        self._add_into = how.kernels.add_into
        self._blocks = blocks = [supply.block for supply in supplies]
        self._draws = [supply.draw for supply in supplies]
        self._share = share
        self._bounds = np.array([0, *accumulate(sizes)])
        self._feeds = feeds(how, blocks, sizes)
        self._outs = [params.dense.on(row) for row in share.stack]
        adds = [0] if share.adds is None else share.adds
        self._tops = [0, *accumulate(1 - int(count) for count in adds)]  # entries of the stack before each part
        self._batches = [NO_BATCH] * len(self._feeds)
        self._calls: list[Call] = []
        self._rows: list[ByTable] = []
        self._losses = [0.0] * len(blocks)
        self._together: Callable[[], Array] | None = None
        self._grains: GrainGradients | None = None
        if share.adds is not None and not how.tables.names:
            self._grains = getattr(model, "grain_gradients", None)

    def shuffle(self, epoch: int) -> None:
        """Draw the order in which this epoch visits each block."""
        orders = [draw(epoch) for draw in self._draws]
        each = len(orders) // len(self._feeds)
        for number, feed in enumerate(self._feeds):
            feed.begin(orders[number * each : (number + 1) * each])

    def load(self, number: int) -> None:
        """Bring batch ``number`` of this epoch into memory."""
        are_new = False
        for place, feed in enumerate(self._feeds):
            batch = feed.load(number)
            if batch is not self._batches[place]:
                self._batches[place], are_new = batch, True
        if are_new:
            self._prepare(self._batches)

    def row_keys(self) -> list[Mapping[str, Array]]:
        """Which rows of each table the loaded parts touch."""
        return [batch.keys for batch in self._batches]

    def compute(self) -> list[ByTable]:
        """Compute the gradients of the loaded parts; returns the rows of each part, if the model has tables."""
        if self._together is None:
            for part, call in enumerate(self._calls):
                self._push(part, call)
        else:
            self._push_together(self._together)
        return self._rows

    @property
    def losses(self) -> Array:
        """The losses of the parts, summed since they were last taken, (parts,) float64."""
        return np.array(self._losses)

    @losses.setter
    def losses(self, losses: Array) -> None:
        self._losses = losses.tolist()

    def take_losses(self) -> Array:
        """The losses of the parts, summed since the last call, (parts,) float64."""
        losses, self._losses = self.losses, [0.0] * len(self._losses)
        return losses

    def _prepare(self, batches: Sequence[Batch]) -> None:
        """Make ready what :meth:`compute` calls, for these batches and for others in the same arrays."""
        if self._grains is not None:
            assert self._share.adds is not None
            arguments = self._params, batches[0], self._bounds, self._share.adds, self._share.stack
            prepare = getattr(self._model, "prepare_grains", None)
            self._together = partial(self._grains, *arguments) if prepare is None else prepare(*arguments)
        elif self._tables.names:
            rows = [self._tables.room_for_rows(batch) for batch in batches]
            self._rows = [as_rows(batch, own) for batch, own in zip(batches, rows, strict=True)]
            outs = [{**self._outs[top], **own} for top, own in zip(self._tops, rows, strict=False)]
            self._calls = [partial(self._on_rows, batch, out) for batch, out in zip(batches, outs, strict=True)]
        else:
            self._calls = [
                self._on_all(batch, self._outs[top])
                for batch, top in zip(self._by_part(batches), self._tops, strict=False)
            ]

    def _on_all(self, batch: Batch, out: Params) -> Call:
        """The model's loss and gradient of a batch, by a function that is bound to the arrays if the model has one."""
        stages, prepare = self._stages, getattr(self._model, "prepare", None)
        if prepare is not None:
            return cast(Call, prepare(self._params, batch, out, *stages or ()))
        more = {} if stages is None else {"ready": stages.ready}
        return partial(self._model.loss_gradient, self._params, batch, out, **more)

    def _on_rows(self, batch: Batch, out: Arrays) -> float:
        """The same of a model with tables, which sees the rows that the batch touches."""
        return self._model.loss_gradient(self._tables.pick(self._params, batch), batch, out)

    def _by_part(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The loaded batches, one a part."""
        if len(batches) == len(self._blocks):
            return batches
        (whole,) = batches
        return [Batch(whole.samples[low:high], whole.labels[low:high]) for low, high in pairwise(self._bounds)]

    def _push(self, part: int, call: Call) -> None:
        """Compute one part's gradient on top of the stack, and add it to those before."""
        try:
            loss = call()
            check_finite(loss)
        except NotFiniteError as error:
            raise cause(error, self._blocks[part]) from error
        self._losses[part] += loss
        for row in range(self._tops[part], self._tops[part + 1] - 1, -1):
            self._add_into(self._share.stack[row - 1], self._share.stack[row])

    def _push_together(self, call: Callable[[], Array]) -> None:
        """Compute the gradients of all parts by one call."""
        try:
            losses = call()
        except NotFiniteError as error:
            raise cause(error, *self._blocks) from error
        given = losses.tolist()
        if not math.isfinite(sum(given)):
            self._check_losses(losses)
        self._losses = list(map(operator.add, self._losses, given))

    def _check_losses(self, losses: Array) -> None:
        """Raise what is to be said of the first loss that is not finite."""
        for part, loss in enumerate(losses):
            try:
                check_finite(loss)
            except NotFiniteError as error:
                raise cause(error, self._blocks[part]) from error


def check_finite(loss: float) -> None:
    """Raise NotFiniteError unless the loss is a number."""
    if not math.isfinite(loss):
        raise NotFiniteError(f"the loss is {loss}; a smaller optimizer.learning_rate or data.scale may help")


def cause(error: NotFiniteError, *blocks: Block) -> HpcpsError:
    """Why a loss or gradient is not finite: a sample of the blocks that is not, if there is one, else ``error``."""
    for block in blocks:
        bad = find_bad(block)
        if bad is not None:
            return DataError(bad)
    return error
