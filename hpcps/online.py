"""Linear models of sparse samples that take a step after each sample (``train.strategy = "online"``).

All threads and ranks of a node change the same numbers, without locks and without waiting for each other: Recht, Re,
Wright and Niu, "Hogwild!: a lock-free approach to parallelizing stochastic gradient descent", NIPS 2011. It is an
asynchronous parameter server whose workers apply what they push themselves: nothing is merged, sent, or looked up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcps import aligned
from hpcps.comm.topology import chunk
from hpcps.comm.transport import Transport
from hpcps.config import Optimizer as Options
from hpcps.data import Csr
from hpcps.errors import CheckpointError, ConfigError, NotFiniteError
from hpcps.exchange import Exchange, Keys
from hpcps.feed import Supply
from hpcps.lane import cause, check_finite
from hpcps.loader import Loaders, SparseLoader
from hpcps.models import Array
from hpcps.params import Params
from hpcps.parts import Order
from hpcps.rows import ByTable
from hpcps.snapshot import Flat, Pieces, Snapshot, TableRows, in_memory

STATE, BIAS = "online.state", "online.bias"
"""What a checkpoint calls the numbers of the features, (D * P,), and those of the bias, (P,)"""


@dataclass(frozen=True)
class _Rule:
    """A kernel, how many numbers it keeps of a feature, and what it takes of the options."""

    kernel: str
    width: int
    numbers: tuple[float, ...]


def _rule(o: Options) -> _Rule:
    """Of an optimiser that `config.refusals` lets through."""
    rules = {
        "sgd": _Rule("online_sgd", 1, (o.learning_rate, o.l2)),
        "adagrad": _Rule("online_adagrad", 2, (o.learning_rate, o.epsilon, o.l2)),
        "ftrl": _Rule("online_ftrl", 2, (o.learning_rate, o.beta, o.l1, o.l2)),
    }
    return rules[o.kind]


class Learned:
    """What the workers of a node learn together: ``state`` (D, P) of the features and ``bias`` (P,), which begin at 0.

    ``loss``: its name, and Huber's delta; ``params``: of the model, in memory that all see; :meth:`publish` makes them
    of the state. Making it is a collective.
    """

    def __init__(
        self, workers: Transport, loss: tuple[str, float], options: Options, params: Params, kernels: Any
    ) -> None:
        self._params = params
        self._rule = rule = _rule(options)
        self._step = getattr(kernels, rule.kernel)
        self._ftrl_weights = kernels.online_ftrl_weights
        self._loss = loss
        features, dtype = len(params["weight"]), params.flat.dtype
        line = aligned.LINE_BYTES // dtype.itemsize
        room = -(-features * rule.width // line) * line  # the bias has a cache line of its own
        whole = common(workers, room + rule.width, dtype)
        self._state = whole[: features * rule.width].reshape((features, 2) if rule.width == 2 else features)
        self._bias = whole[room:]
        self._owned = chunk(features, workers.size, workers.rank)
        self._has_bias = workers.rank == 0

    def learn(self, rows: Sequence[Array], labels: Array, index: Array) -> float:
        """Take a step for each of the samples ``index`` (m,) int64 of ``rows`` (indptr, indices, values), in their
        order; returns the sum of the losses that they had before their steps."""
        return float(self._step(self._state, self._bias, *rows, labels, index, *self._loss, *self._rule.numbers))

    def publish(self, threads: int) -> None:
        """Make this worker's share of the parameters."""
        part = slice(self._owned.start, self._owned.stop)
        weight, bias = self._params["weight"][part], self._params["bias"][: self._has_bias]
        state, of_bias = self._state[part], self._bias.reshape(1, -1)[: self._has_bias]
        if self._rule.kernel == "online_ftrl":
            *rates, l1, l2 = self._rule.numbers
            self._ftrl_weights(weight, state, *rates, l1, l2, threads=threads)
            self._ftrl_weights(bias, of_bias, *rates, 0.0, 0.0)
        else:
            weight[:] = state.reshape(len(weight), -1)[:, 0]
            bias[:] = of_bias[:, 0]

    def pieces(self) -> Pieces:
        """This worker's share of what was learned, and of the parameters."""
        width, start, stop = self._rule.width, self._owned.start, self._owned.stop
        flats = [Flat(STATE, start * width, in_memory(self._state.reshape(-1)[start * width : stop * width]))]
        if self._has_bias:
            flats += [Flat(BIAS, 0, in_memory(self._bias)), Flat("parameters", 0, in_memory(self._params["bias"]))]
        rows = self._params["weight"][start:stop].reshape(-1, 1)
        return Pieces(flats, [TableRows("weight", {"rows": in_memory(rows)}, start)])

    def restore(self, snapshot: Snapshot) -> None:
        """Take over this worker's share. Raises CheckpointError where another strategy has left something else."""
        width, start, stop = self._rule.width, self._owned.start, self._owned.stop
        if not snapshot.has(STATE):
            raise CheckpointError(f"{snapshot.source}: is of another strategy; 'online' goes on from its own alone")
        snapshot.fill(self._state.reshape(-1)[start * width : stop * width], STATE, start * width)
        if self._has_bias:
            snapshot.fill(self._bias, BIAS)


def common(workers: Transport, count: int, dtype: np.dtype[Any]) -> Array:
    """Zeros, (count,), that the workers of a node have together. A collective. Raises ConfigError where there is too
    little such memory."""
    found = aligned.zeros(count, dtype) if workers.size == 1 else workers.memory.common(count, dtype)
    if found is None:
        size_mib = count * dtype.itemsize >> 20
        raise ConfigError(f"train.strategy = 'online' needs {size_mib} MiB of memory that ranks share; there is less")
    return found


class OnlineLane:
    """A part of every batch, ``size`` samples of a supply, learned by one thread."""

    def __init__(self, learned: Learned, how: Loaders, supply: Supply, size: int) -> None:
        self._learned = learned
        self._block, self._draw = block, _ = supply
        self._size = size
        self._order: Order = np.empty(0, np.int64)
        self._index = np.empty(0, np.int64)
        self._loader = SparseLoader(block, how)
        self._stored = self._as_stored(how)
        self.losses: Array = np.zeros(1)

    def shuffle(self, epoch: int) -> None:
        """Draw the order in which this epoch visits the block."""
        self._order = self._draw(epoch)

    def load(self, number: int) -> None:
        """Note the samples of batch ``number`` of this epoch."""
        self._index = self._order[number * self._size : (number + 1) * self._size]

    def row_keys(self) -> list[Mapping[str, Array]]:
        """No rows are fetched."""
        return []

    def compute(self) -> list[ByTable]:
        """Learn from the batch; there is no gradient to be handed on."""
        try:
            if self._stored is None:
                rows, labels = self._loader.rows(self._index)
                index = np.arange(len(labels))
            else:
                (rows, labels), index = self._stored, self._index
            loss = self._learned.learn(rows, labels, index)
            check_finite(loss)
        except NotFiniteError as error:
            raise cause(error, self._block) from error
        self.losses += loss
        return []

    def take_losses(self) -> Array:
        """The loss, summed since the last call, (1,) float64."""
        losses, self.losses = self.losses, np.zeros(1)
        return losses

    def _as_stored(self, how: Loaders) -> tuple[tuple[Array, Array, Array], Array] | None:
        """Samples that are in memory as the kernel takes them, and their labels; None of others."""
        samples = self._block.samples if not self._block.window else None
        if not isinstance(samples, Csr) or not how.is_unscaled:
            return None
        values = samples.values[:0] if (samples.values == 1).all() else samples.values
        return (samples.indptr, samples.indices, values), self._block.labels.astype(how.scale.dtype)


class OnlineExchange(Exchange):
    """Nothing is sent; at the end of an epoch, and of a run, the parameters are made of what all have learned."""

    def __init__(self, workers: Transport, learned: Learned, threads: int) -> None:
        self._workers = workers
        self._learned = learned
        self._threads = threads
        self.way = "every sample is a step"
        if workers.size > 1:
            self.way += ", in the node's memory"

    def start(self, step: int, flush: bool = False) -> None:
        """The step has been taken."""

    def wait(self, keys: Any = None) -> None:
        """At the end of an epoch: wait for all workers, and make the parameters."""
        if keys is None:
            self._workers.barrier()
            self._learned.publish(self._threads)
            self._workers.barrier()

    def fetch(self, keys: Keys) -> None:
        """Every worker has all parameters."""

    def meet(self) -> None:
        """Nobody has shards."""

    def pieces(self) -> Pieces:
        return self._learned.pieces()

    def keep(self) -> None:
        """Wait until all workers have copied their share: until then nothing may change."""
        self._workers.barrier()

    def restore(self, snapshot: Snapshot) -> None:
        self._learned.restore(snapshot)
        self._workers.barrier()

    def finish(self) -> None:
        """Nothing is left to do."""
