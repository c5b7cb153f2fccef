"""Gradients in fewer bytes on their way to a shard; what a letter leaves out is kept and begins the next one.

What a worker pulls is whole: parameters cannot be sent later.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpcps import aligned
from hpcps.comm.codes import BFloat16, Code, Int8, not_finite
from hpcps.comm.transport import Array


class Largest:
    """The numbers of largest magnitude, a ``fraction`` of all, and where they stand ("Sparsified SGD with memory",
    Stich, Cordonnier and Jaggi 2018): float values, then their positions as int32."""

    block = 1

    def __init__(self, kernels: Any, fraction: float, dtype: DTypeLike) -> None:
        self.name = f"top-k, fraction {fraction:g}"
        self._top_k = kernels.top_k
        self._fraction = fraction
        self._dtype = np.dtype(dtype)

    def message_bytes(self, count: int) -> int:
        return self._picked(count) * (self._dtype.itemsize + 4)

    def encode(self, message: Array, residual: Array, x: Array) -> None:
        values, positions = self._parts(message)
        index = np.empty(len(values), np.int64)
        try:
            self._top_k(index, values, residual, x)
        except ValueError as error:  # the sizes are right, so that it is the numbers
            raise not_finite("top-k") from error
        if not np.isfinite(values).all():
            raise not_finite("top-k")
        positions[:] = index

    def decode(self, out: Array, message: Array) -> None:
        out.fill(0)
        self.decode_add(out, message)

    def decode_add(self, out: Array, message: Array) -> None:
        values, positions = self._parts(message)
        out[positions] += values  # they are all distinct

    def _picked(self, count: int) -> int:
        return min(count, max(1, round(self._fraction * count)))

    def _parts(self, message: Array) -> tuple[Array, Array]:
        split = len(message) // (self._dtype.itemsize + 4) * self._dtype.itemsize
        return message[:split].view(self._dtype), message[split:].view(np.int32)


def make(kind: str, block: int, fraction: float, dtype: DTypeLike, kernels: Any) -> Code:
    """The code of this kind."""
    if kind == "bf16":
        return BFloat16(kernels)
    return Int8(kernels, block) if kind == "int8" else Largest(kernels, fraction, dtype)


class Encoder:
    """What a worker pushes to one shard, (count,), as codes; it keeps what they leave out."""

    def __init__(self, code: Code, count: int, dtype: DTypeLike) -> None:
        self.message = aligned.empty(code.message_bytes(count), np.uint8)
        self._code = code
        self._residual = aligned.zeros(count, dtype)

    def encode(self, x: Array) -> Array:
        """Overwrite ``message`` with the codes of ``x`` and of what was left out before; returns it. Raises
        NotFiniteError."""
        self._code.encode(self.message, self._residual, x)
        return self.message
