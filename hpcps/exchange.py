"""Where workers agree: part gradients in, fresh parameters out, by all-reduce or through the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from hpcps.comm.transport import Array
from hpcps.optim import Optimizer
from hpcps.server.client import Client
from hpcps.sums import Decoder, Sum


class Waiting(Protocol):
    """A step's exchange on its way."""

    def wait(self) -> None:
        """Block until this worker's parameters contain the step."""


class Exchange(Protocol):
    """``start`` sends off a step's gradient; waiting for what it returns makes the parameters fresh.

    Between the two the worker may do anything but change parameters and gradients. One step at a time. ``way`` says
    in a few words how it is done.
    """

    way: str

    def start(self, step: int) -> Waiting:
        """Send off the sum of the part gradients of ``step`` (from 1)."""

    def finish(self) -> None:
        """After the last step."""


class Allreduce(Protocol):
    """A way to sum one array over the workers, in two halves."""

    name: str

    def start(self, x: Array) -> Waiting:
        """Begin; ``x`` holds the sum once the returned ticket has been waited for."""


class Alone:
    """The all-reduce of one worker: its array is the sum."""

    name = "none"

    def start(self, x: Array) -> Waiting:
        return self

    def wait(self) -> None:
        """There is nobody to wait for."""


class AllreduceExchange:
    """Gradients are all-reduced; every worker applies the same update to its own copy of the parameters."""

    def __init__(
        self,
        allreduce: Allreduce,
        params: Array,
        optimizer: Optimizer,
        gradients: Sum,
        decoder: Decoder,
        gradient_scale: float,
    ) -> None:
        self._allreduce = allreduce
        self._params = params
        self._optimizer = optimizer
        self._state = optimizer.init(params)
        self._gradients = gradients
        self._decoder = decoder
        self._gradient_scale = gradient_scale
        self.way = f"all-reduce: {allreduce.name}"

    def start(self, step: int) -> Waiting:
        wire, scale = self._gradients.finish()
        return _Reducing(self, self._allreduce.start(wire), step, wire, scale)

    def update(self, step: int, wire: Array, scale: float) -> None:
        """Apply the summed gradient."""
        gradient = self._decoder.gradient(wire, scale)
        self._optimizer.update(self._params, self._state, gradient, self._gradient_scale, step)

    def finish(self) -> None:
        """Nothing is left to do."""


class _Reducing:
    def __init__(self, exchange: AllreduceExchange, pending: Waiting, step: int, wire: Array, scale: float) -> None:
        self._exchange = exchange
        self._pending = pending
        self._step = step
        self._wire = wire
        self._scale = scale

    def wait(self) -> None:
        self._pending.wait()
        self._exchange.update(self._step, self._wire, self._scale)


class ServerExchange:
    """Gradients are pushed to the shards, which apply the update; fresh parameters are pulled."""

    way = "push to shards, pull from them"

    def __init__(self, client: Client, gradients: Sum) -> None:
        self._client = client
        self._gradients = gradients

    def start(self, step: int) -> Waiting:
        wire, scale = self._gradients.finish()
        return self._client.push_pull(step, wire, scale)

    def finish(self) -> None:
        self._client.finish()


def largest_of(ranks: int, rank: int, allreduce: Allreduce) -> Callable[[float], float]:
    """The agreement on the largest of one number a worker; ``allreduce`` sums arrays of (ranks,) float64."""
    numbers = np.zeros(ranks, np.float64)

    def agree(mine: float) -> float:
        numbers.fill(0.0)
        numbers[rank] = mine
        allreduce.start(numbers).wait()
        return float(numbers.max())

    return agree
