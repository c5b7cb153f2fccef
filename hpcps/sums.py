"""Sums of part gradients: plain floating point, or exact and therefore the same whoever adds what in which order.

The exact sum is fixed point: each part's gradient times a power of two, rounded to int64. The scale is taken from
the largest gradient element of all parts of all ranks (one small agreement a step), so large that the sum cannot
overflow and small that float32 elements down to 2**-34 of the largest keep every bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike

from hpcps.errors import NotFiniteError
from hpcps.rows import ByTable, Merger, Rows

Array = np.ndarray[Any, Any]
FIXED_POINT_BITS = 62


NO_ROWS: ByTable = {}


class Summed(NamedTuple):
    """A rank's share of a step's gradient, as it goes on the wire."""

    dense: Array
    """(n,), of the dense parameters"""
    scale: float
    """What the numbers were multiplied by, the same on all ranks; 1 in floating point"""
    rows: ByTable = NO_ROWS
    """The tables' rows, their values in the same dtype as ``dense``"""


class Sum(Protocol):
    """Adds up the part gradients of this rank."""

    parts: list[Array]
    """Where part gradients are written: arrays of (n,), one a part of this rank."""

    def take(self, part: int, rows: ByTable = NO_ROWS) -> None:
        """Take up part ``part``, finished, and its tables' rows. Parts come in ascending order."""

    def finish(self) -> Summed:
        """The sum of all parts."""


class Decoder:
    """What the receiver of wire arrays needs: their dtype, how to add them, and how to get the gradient back."""

    def __init__(self, exact: bool, dtype: DTypeLike, kernels: Any) -> None:
        self.exact = exact
        self.wire_dtype = np.dtype(np.int64 if exact else dtype)
        self.add_into: Callable[[Array, Array], None] = kernels.add_into
        self._dtype = np.dtype(dtype)
        self._from_fixed = kernels.from_fixed

    def gradient(self, wire: Array, scale: float) -> Array:
        """The summed gradient as floats, in the wire array's shape; the array itself where it holds floats."""
        if not self.exact:
            return wire
        gradient = np.empty(wire.shape, self._dtype)
        self._from_fixed(gradient.reshape(-1), wire.reshape(-1), 1.0 / scale)
        return gradient


class FloatSum:
    """Parts added in ascending order, into the first one's buffer."""

    def __init__(self, parts: list[Array], kernels: Any) -> None:
        self.parts = parts
        self._add_into = kernels.add_into
        self._merger = Merger(kernels)
        self._rows: list[ByTable] = []

    def take(self, part: int, rows: ByTable = NO_ROWS) -> None:
        if part > 0:
            self._add_into(self.parts[0], self.parts[part])
        if rows:
            self._rows.append(rows)

    def finish(self) -> Summed:
        if not self._rows:
            return Summed(self.parts[0], 1.0)
        rows = self._merger.merge(self._rows)
        self._rows = []
        return Summed(self.parts[0], 1.0, rows)


class ExactSum:
    """Parts added as int64 fixed point. ``agree(x)`` gives the largest x of all ranks; ``total`` counts their
    parts; ``wire`` (n,) int64 is where the sum is written."""

    def __init__(
        self, parts: list[Array], kernels: Any, total: int, agree: Callable[[float], float], wire: Array
    ) -> None:
        self.parts = parts
        self._kernels = kernels
        self._merger = Merger(kernels)
        self._total = total
        self._agree = agree
        self._largest = 0.0
        self._wire = wire
        self._rows: list[ByTable] = []

    def take(self, part: int, rows: ByTable = NO_ROWS) -> None:
        for values in (self.parts[part], *(one.values.reshape(-1) for one in rows.values())):
            largest = self._kernels.max_abs(values)
            if not math.isfinite(largest):
                raise NotFiniteError(
                    "the gradient is not finite; a smaller optimizer.learning_rate or data.scale may help"
                )
            self._largest = max(self._largest, largest)
        if rows:
            self._rows.append(rows)

    def finish(self) -> Summed:
        scale = fixed_point_scale(self._agree(self._largest), self._total)
        self._largest = 0.0
        self._wire.fill(0)
        for part in self.parts:
            self._kernels.add_fixed(self._wire, part, scale)
        rows: dict[str, Rows] = self._merger.merge_fixed(self._rows, scale) if self._rows else {}
        self._rows = []
        return Summed(self._wire, scale, rows)


def fixed_point_scale(largest: float, parts: int) -> float:
    """The power of two by which to multiply: ``parts`` addends of at most ``largest`` stay below 2**62.

    >>> fixed_point_scale(1.0, 16) == 2.0**57
    True
    """
    if largest == 0.0:
        return 1.0
    exponent = math.frexp(largest)[1]
    return 2.0 ** min(1000, FIXED_POINT_BITS - (parts - 1).bit_length() - exponent)
