"""What gradients become on the wire: two bytes a number, or one, or the largest numbers alone.

A code writes a message of ``message_bytes(count)`` for ``count`` numbers, and keeps what the message leaves out in a
residual, which the next message begins with: "error feedback" (Stich, Cordonnier and Jaggi 2018; Karimireddy, Rebjock,
Stich and Jaggi 2019). The kernels are those of ``hpcps_kernels``, handed in as a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from hpcps.comm.transport import Array
from hpcps.errors import CommError, NotFiniteError

Residuals = Mapping[str, tuple[int, Array]]
"""What is kept to be sent later: by name, the first element that it belongs to, and the numbers themselves."""
POSITIONS_MAX = 2**31
"""Positions are sent as int32."""


class Code(Protocol):
    """A way to write numbers in fewer bytes. ``block``: messages hold whole blocks, the last one excepted."""

    name: str
    block: int

    def message_bytes(self, count: int) -> int:
        """The length of a message of ``count`` numbers."""

    def encode(self, message: Array, residual: Array, x: Array) -> None:
        """Write residual + x into ``message``, (message_bytes(n),) uint8, and what it leaves out into ``residual``.

        residual, x (n,) float32. Raises NotFiniteError if residual + x, or what is left out, is not finite.
        """

    def decode(self, out: Array, message: Array) -> None:
        """Overwrite ``out``, (n,) float32, with the numbers for which the message stands."""

    def decode_add(self, out: Array, message: Array) -> None:
        """Add them to ``out``, (n,) float32."""


class BFloat16:
    """The upper half of each float32, rounded: 2 bytes, a relative error of at most 2**-8."""

    name = "bf16"
    block = 64

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels
        self._room = np.empty(0, np.float32)

    def message_bytes(self, count: int) -> int:
        return 2 * count

    def encode(self, message: Array, residual: Array, x: Array) -> None:
        codes = message.view(np.uint16)
        self._kernels.add_into(residual, x)
        self._kernels.to_bfloat16(codes, residual)
        sent = self._scratch(len(x))
        self._kernels.from_bfloat16(sent, codes)
        self._kernels.axpy(residual, sent, -1.0)
        if not math.isfinite(self._kernels.max_abs(residual)):  # nor was the sum, or it became inf as it was rounded
            raise not_finite(self.name)

    def decode(self, out: Array, message: Array) -> None:
        self._kernels.from_bfloat16(out, message.view(np.uint16))

    def decode_add(self, out: Array, message: Array) -> None:
        addend = self._scratch(len(out))
        self.decode(addend, message)
        self._kernels.add_into(out, addend)

    def _scratch(self, count: int) -> Array:
        if len(self._room) < count:
            self._room = np.empty(count, np.float32)
        return self._room[:count]


class Int8:
    """Whole numbers from -127 to 127 and a float32 scale a block: 1 + 4 / block bytes, an error of at most half a
    scale, which is the block's largest magnitude / 127. A message holds the scales, then the codes."""

    def __init__(self, kernels: Any, block: int) -> None:
        self.name = f"int8, blocks of {block}"
        self.block = block
        self._quantize = kernels.quantize_int8_feedback
        self._dequantize = kernels.dequantize_int8
        self._dequantize_add = kernels.dequantize_add_int8

    def message_bytes(self, count: int) -> int:
        return 4 * -(-count // self.block) + count

    def encode(self, message: Array, residual: Array, x: Array) -> None:
        scales, codes = self._parts(message, len(x))
        try:
            self._quantize(codes, scales, residual, x, self.block, "nearest", 0, 0)
        except ValueError as error:  # the sizes are right, so that it is the numbers
            raise not_finite(self.name) from error

    def decode(self, out: Array, message: Array) -> None:
        scales, codes = self._parts(message, len(out))
        self._dequantize(out, codes, scales, self.block)

    def decode_add(self, out: Array, message: Array) -> None:
        scales, codes = self._parts(message, len(out))
        self._dequantize_add(out, codes, scales, self.block)

    def _parts(self, message: Array, count: int) -> tuple[Array, Array]:
        scales_bytes = len(message) - count
        return message[:scales_bytes].view(np.float32), message[scales_bytes:].view(np.int8)


class Largest:
    """The numbers of largest magnitude, a ``fraction`` of all, at least one, and where they stand ("Sparsified SGD with
    memory", Stich, Cordonnier and Jaggi 2018). A message holds k floats of ``dtype``, then their positions as int32; it
    stands for 0 elsewhere. Decoded numbers are added to in place, in the order of the messages."""

    block = 1

    def __init__(self, kernels: Any, fraction: float, dtype: DTypeLike) -> None:
        self.name = f"top-k, fraction {fraction:g}"
        self._fraction = fraction
        self._dtype = np.dtype(dtype)
        self._top_k = kernels.top_k
        self._scatter_add = kernels.scatter_add_rows
        self._max_abs = kernels.max_abs

    def message_bytes(self, count: int) -> int:
        if count > POSITIONS_MAX:
            raise CommError(f"top-k of {count} numbers: positions are sent as int32: {POSITIONS_MAX} are the most")
        return min(count, max(1, round(self._fraction * count))) * (self._dtype.itemsize + 4)

    def encode(self, message: Array, residual: Array, x: Array) -> None:
        values, positions = self._parts(message)
        index = np.empty(len(values), np.int64)
        try:
            self._top_k(index, values, residual, x)
        except ValueError as error:  # the sizes are right, so that it is the numbers
            raise not_finite("top-k") from error
        if not math.isfinite(self._max_abs(values)):
            raise not_finite("top-k")
        positions[:] = index

    def decode(self, out: Array, message: Array) -> None:
        out.fill(0)
        self.decode_add(out, message)

    def decode_add(self, out: Array, message: Array) -> None:
        values, positions = self._parts(message)
        self._scatter_add(out.reshape(-1, 1), values.reshape(-1, 1), positions.astype(np.int64))

    def _parts(self, message: Array) -> tuple[Array, Array]:
        split = len(message) // (self._dtype.itemsize + 4) * self._dtype.itemsize
        return message[:split].view(self._dtype), message[split:].view(np.int32)


def make(kind: str, block: int, fraction: float, dtype: DTypeLike, kernels: Any) -> Code:
    """bf16, int8 (in blocks of ``block``), both for float32 alone, or topk (the largest ``fraction``)."""
    if kind == "topk":
        return Largest(kernels, fraction, dtype)
    return Int8(kernels, block) if kind == "int8" else BFloat16(kernels)


def not_finite(code: str) -> NotFiniteError:
    """The error of a rank whose numbers, or whose part of the sums, have no code."""
    remedy = "a smaller optimizer.learning_rate or data.scale may help"
    return NotFiniteError(f"a sum of gradients is not finite, or too large to be sent as {code}; {remedy}")
