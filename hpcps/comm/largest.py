"""The all-reduce of the largest numbers alone: the k largest of each rank are sent, and the rest later."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpcps.comm import ring
from hpcps.comm.codes import not_finite
from hpcps.comm.pending import Pending, Steps
from hpcps.comm.transport import Array, Transport
from hpcps.errors import CommError

COUNT_MAX = 2**31
"""Positions are sent as int32."""


class LargestAllreduce:
    """All-reduces of arrays of ``count`` floats of ``dtype``, one after another, of which each rank sends the largest:
    k = max(1, round(fraction * count)) of its numbers plus what it has not sent before, picked by magnitude.

    "Sparsified SGD with memory" (Stich, Cordonnier and Jaggi 2018). Cost of one: P - 1 steps along the ring,
    (P - 1) k positions (int32) and values sent by each rank; it pays while P * fraction is well below 1. Added to
    zeros in rank order: all ranks get the same bits. One rank alone leaves nothing out.

    Memory: a residual of n numbers and the messages of all ranks. ``kernels`` is the table of ``hpcps_kernels``.
    """

    def __init__(self, transport: Transport, count: int, dtype: DTypeLike, fraction: float, kernels: Any) -> None:
        if count > COUNT_MAX:
            raise CommError(f"top-k of {count} numbers: positions are sent as int32, so that {COUNT_MAX} are the most")
        self.name = f"top-k, fraction {fraction:g}, error feedback"
        self._transport = transport
        self._top_k = kernels.top_k
        self._scatter_add = kernels.scatter_add_rows
        self._max_abs = kernels.max_abs
        self._picked = min(count, max(1, round(fraction * count)))
        self._residual = np.zeros(count, dtype)
        self._index = np.empty(self._picked, np.int64)
        self._values_bytes = self._picked * self._residual.itemsize
        message_bytes = -(-(self._values_bytes + 4 * self._picked) // 8) * 8  # the next rank's values are aligned, too
        self._messages = np.zeros((transport.size, message_bytes), np.uint8)

    def start(self, x: Array) -> Pending:
        """Begin the sum of ``x``, (count,), which may not be touched before the wait and then holds the sum.

        Raises NotFiniteError on a rank whose numbers are not finite, or on all where the sum is not.
        """
        return Pending(self._transport, self._steps(x))

    def _steps(self, x: Array) -> Steps:
        size = self._transport.size
        if size == 1 or not self._picked:
            return
        values, index = self._parts(self._transport.rank)
        try:
            self._top_k(self._index, values, self._residual, x)
        except ValueError as error:  # the sizes are right, so that it is the numbers
            raise not_finite("top-k") from error
        if not math.isfinite(self._max_abs(values)):
            raise not_finite("top-k")
        index[:] = self._index
        bounds = [rank * self._messages.shape[1] for rank in range(size + 1)]
        yield from ring.all_gather_steps(self._transport, self._messages.reshape(-1), bounds)
        x.fill(0)
        for rank in range(size):
            values, index = self._parts(rank)
            self._scatter_add(x.reshape(-1, 1), values.reshape(-1, 1), index.astype(np.int64))
        if not math.isfinite(self._max_abs(x)):
            raise not_finite("top-k")

    def _parts(self, rank: int) -> tuple[Array, Array]:
        message, split = self._messages[rank], self._values_bytes
        return message[:split].view(self._residual.dtype), message[split : split + 4 * self._picked].view(np.int32)
