"""The all-reduce of the largest numbers alone: the k largest of each rank are sent, and the rest later."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpcps.comm import ring
from hpcps.comm.codes import Largest, Residuals, not_finite
from hpcps.comm.pending import Pending, Steps
from hpcps.comm.transport import Array, Transport


class LargestAllreduce:
    """All-reduces of arrays of ``count`` floats of ``dtype``, one after another, of which each rank sends the largest
    (:class:`~hpcps.comm.codes.Largest`) of its numbers plus what it has not sent before.

    Cost of one: P - 1 steps along the ring, (P - 1) k positions (int32) and values sent by each rank; it pays while
    P * fraction is well below 1. Added to zeros in rank order: all ranks get the same bits. One rank alone leaves
    nothing out.

    Memory: a residual of n numbers and the messages of all ranks. ``kernels`` is the table of ``hpcps_kernels``.
    """

    def __init__(self, transport: Transport, count: int, dtype: DTypeLike, fraction: float, kernels: Any) -> None:
        self._code = Largest(kernels, fraction, dtype)
        self.name = f"{self._code.name}, error feedback"
        self._transport = transport
        self._max_abs = kernels.max_abs
        self._residual = np.zeros(count, dtype)
        self._message_bytes = self._code.message_bytes(count)
        row_bytes = -(-self._message_bytes // 8) * 8  # the next rank's values are aligned, too
        self._messages = np.zeros((transport.size, row_bytes), np.uint8)

    def residuals(self) -> Residuals:
        """What this rank has left out."""
        return {"": (0, self._residual)}

    def start(self, x: Array) -> Pending:
        """Begin the sum of ``x``, (count,), which may not be touched before the wait and then holds the sum.

        Raises NotFiniteError on a rank whose numbers are not finite, or on all where the sum is not.
        """
        return Pending(self._transport, self._steps(x))

    def _steps(self, x: Array) -> Steps:
        size = self._transport.size
        if size == 1 or not self._message_bytes:
            return
        messages = self._messages[:, : self._message_bytes]
        self._code.encode(messages[self._transport.rank], self._residual, x)
        bounds = [rank * self._messages.shape[1] for rank in range(size + 1)]
        yield from ring.all_gather_steps(self._transport, self._messages.reshape(-1), bounds)
        x.fill(0)
        for message in messages:
            self._code.decode_add(x, message)
        if not math.isfinite(self._max_abs(x)):
            raise not_finite("top-k")
