"""One shard of the parameters: it adds up what the workers push and updates itself."""

from __future__ import annotations

from hpcps.comm.transport import Array
from hpcps.errors import CommError
from hpcps.optim import Optimizer
from hpcps.sums import Decoder


class Shard:
    """Parameters of (n,) and their optimiser state. ``clock`` counts the steps that they contain.

    A step's gradient is complete when every worker has pushed. Pushes are added in the order of the workers'
    numbers, as soon as that order allows, so that the bits do not depend on who came first.
    """

    def __init__(
        self, params: Array, optimizer: Optimizer, decoder: Decoder, workers: int, gradient_scale: float
    ) -> None:
        self.params = params
        self.clock = 0
        self._optimizer = optimizer
        self._state = optimizer.init(params)
        self._decoder = decoder
        self._workers = workers
        self._gradient_scale = gradient_scale
        self._sum: Array | None = None
        self._early: dict[int, Array] = {}
        self._added = 0

    def push(self, worker: int, step: int, gradient: Array, scale: float) -> bool:
        """Take one worker's gradient for the next step; it may not be changed until the step is complete.

        Returns whether this completed the step, so that ``params`` are fresh. Raises CommError on a push out of turn.
        """
        if step != self.clock + 1 or worker < self._added or worker in self._early:
            raise CommError(f"worker {worker} pushed step {step} to a shard that is at step {self.clock}")
        self._early[worker] = gradient
        while self._added in self._early:
            self._add(self._early.pop(self._added))
        if self._added < self._workers:
            return False
        self._update(scale)
        return True

    def _add(self, gradient: Array) -> None:
        if self._sum is None:
            self._sum = gradient
        else:
            self._decoder.add_into(self._sum, gradient)
        self._added += 1

    def _update(self, scale: float) -> None:
        assert self._sum is not None
        gradient = self._decoder.gradient(self._sum, scale)
        self.clock += 1
        self._optimizer.update(self.params, self._state, gradient, self._gradient_scale, self.clock)
        self._sum = None
        self._added = 0
