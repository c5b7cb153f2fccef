"""Sums of part gradients: plain floating point, or in an order that does not depend on who adds what.

The reproducible sum of dense gradients is a fixed tree of floating point sums over the grains
(:mod:`hpcps.comm.order`). Rows of tables, of which every grain has others, are added in fixed point: each value times a
power of two, rounded to int64. The scale is taken from the largest value of all grains of all ranks (one small
agreement a step, of models with tables alone), so large that the sum cannot overflow and small that float32 values down
to 2**-34 of the largest keep every bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike

from hpcps import aligned, device
from hpcps.comm.order import adds_of, depth, pieces
from hpcps.comm.topology import chunk_bounds
from hpcps.errors import NotFiniteError
from hpcps.rows import ByTable, Found, Merger, Picked, Rows

Array = np.ndarray[Any, Any]
Empty = Callable[[int, DTypeLike], Array]
"""Gives an uninitialised array of so many elements."""
FIXED_POINT_BITS = 62


NO_ROWS: ByTable = {}
ALL_ROWS: Mapping[str, Picked] = {}
NOT_FOUND: Mapping[str, Found] = {}


class Summed(NamedTuple):
    """A rank's share of a step's gradient, as it goes on the wire."""

    dense: Array
    """Of the dense parameters: (n,), or in a reproducible run the pieces (m, n)"""
    scale: float
    """What the rows' values were multiplied by, the same on all ranks; 1 in floating point"""
    rows: ByTable = NO_ROWS
    """The tables' rows, in the dtype of the parameters, or as int64 fixed point"""
    picked: Mapping[str, Picked] = ALL_ROWS
    """Which rows of the batch these are, where they are not all"""
    found: Mapping[str, Found] = NOT_FOUND
    """On a shard, where its tables have the rows, as far as that is known"""

    @property
    def total(self) -> Array:
        """Where an all-reduce of ``dense`` leaves the sum, (n,)."""
        return self.dense if self.dense.ndim == 1 else self.dense[0]


class Share(NamedTuple):
    """Consecutive parts that one thread computes, and where their dense gradient goes."""

    parts: range
    """Positions among the parts of this rank"""
    adds: Array | None
    """(parts,) int64: how many additions follow each part's gradient; None: there is one part, and nothing to add"""
    stack: Array
    """(depth, n): a part's gradient is pushed, then added to those before; the sums come to lie in the first rows"""


class Sum(Protocol):
    """Adds up the part gradients of this rank."""

    shares: list[Share]
    buffer: Array
    """What :meth:`finish` gives as the dense sum, in every step"""

    def take(self, share: int, rows: Sequence[ByTable] = ()) -> None:
        """Take up share ``share``, finished, and the tables' rows of its parts, where there are tables. Shares come in
        ascending order."""

    def finish(self) -> Summed:
        """The sum of all parts."""


class Decoder:
    """What the receiver of sums needs: dtypes, how to add and to move rows, how to get gradients back from them."""

    def __init__(self, exact: bool, dtype: DTypeLike, kernels: Any) -> None:
        self.dtype = np.dtype(dtype)
        self.rows_dtype = np.dtype(np.int64 if exact else dtype)
        self.add_into: Callable[[Array, Array], None] = kernels.add_into
        self.gather_rows: Callable[[Array, Array, Array], None] = kernels.gather_rows
        self.scatter_rows: Callable[[Array, Array, Array], None] = kernels.scatter_rows
        self.stream: Callable[[Array, Array], None] = kernels.stream
        self.exact = exact
        self._from_fixed = kernels.from_fixed

    def values(self, wire: Array, scale: float) -> Array:
        """Rows' values as floats, in the same shape; the array itself where it holds floats."""
        if not self.exact:
            return wire
        values = np.empty(wire.shape, self.dtype)
        self._from_fixed(values.reshape(-1), wire.reshape(-1), 1.0 / scale)
        return values


class FloatSum:
    """Parts added in ascending order, into the first one's buffer; a share is one part."""

    def __init__(self, parts: list[Array], kernels: Any) -> None:
        self.shares = [Share(range(n, n + 1), None, part.reshape(1, -1)) for n, part in enumerate(parts)]
        self._parts = parts
        self.buffer = parts[0]
        self._add_into = kernels.add_into
        self._merger = Merger(kernels)
        self._rows: list[ByTable] = []
        self._dense_alone = Summed(self.buffer, 1.0)

    def take(self, share: int, rows: Sequence[ByTable] = ()) -> None:
        if share > 0:
            self._add_into(self._parts[0], self._parts[share])
        self._rows += rows

    def finish(self) -> Summed:
        if not self._rows:
            return self._dense_alone
        rows = self._merger.merge(self._rows)
        self._rows = []
        return Summed(self.buffer, 1.0, rows)


class TreeSum:
    """The grains ``owned`` of ``total``, added in tree order; ``finish`` gives this rank's pieces.

    The grains are shared out over ``threads``. ``visible``, called once, gives memory that the other ranks see.
    ``agree(x)`` gives the largest x of all ranks; it is called where there are rows, which ``merger`` merges on the
    host.
    """

    def __init__(
        self,
        owned: range,
        total: int,
        threads: int,
        parameters: int,
        dtype: DTypeLike,
        visible: Empty,
        kernels: Any,
        agree: Callable[[float], float],
        merger: Merger | None = None,
    ) -> None:
        self._kernels = kernels
        self._merger = merger or Merger(kernels)
        self._device = device.of(kernels)
        self._total = total
        self._agree = agree
        self._largest = 0.0
        self._rows: list[ByTable] = []
        bounds = chunk_bounds(len(owned), min(threads, len(owned)))
        sums = [pieces(owned.start + low, owned.start + high, total) for low, high in pairwise(bounds)]
        adds = [_adds_of_grains(one) for one in sums]
        tops = [0, *accumulate(map(depth, adds))]
        size = tops[-1] * parameters
        memory = (visible(size, dtype) if len(sums) == 1 else aligned.empty(size, dtype)).reshape(tops[-1], parameters)
        self.shares = [
            Share(range(*bounds[n : n + 2]), np.array(own, np.int64), memory[slice(*tops[n : n + 2])])
            for n, own in enumerate(adds)
        ]
        left = [len(one) for one in sums]
        flat = [share.stack[:count].reshape(-1) for share, count in zip(self.shares, left, strict=True)]
        self._are_finite = [kernels.all_finite.bind(one) for one in flat]
        self.buffer = memory[: left[0]]
        self._memory = memory
        if len(sums) > 1:  # what the threads have added is then added up
            wanted = pieces(owned.start, owned.stop, total)
            self.buffer = visible(len(wanted) * parameters, dtype).reshape(len(wanted), parameters)
            self._from = np.concatenate([top + np.arange(count) for top, count in zip(tops, left, strict=False)])
            self._adds = np.array(adds_of(wanted, [one for own in sums for one in own]), np.int64)
        self._dense_alone = Summed(self.buffer, 1.0)

    def take(self, share: int, rows: Sequence[ByTable] = ()) -> None:
        is_finite = self._are_finite[share]()
        rows = rows if self._device.is_host else [on_host(self._device, one) for one in rows]
        for values in (table.values for one in rows for table in one.values()):
            largest = self._merger.largest(values)
            is_finite &= math.isfinite(largest)
            self._largest = max(self._largest, largest)
        if not is_finite:
            raise NotFiniteError("the gradient is not finite; a smaller optimizer.learning_rate or data.scale may help")
        self._rows += rows

    def finish(self) -> Summed:
        if len(self.shares) > 1:
            self._kernels.sum_tree(self.buffer, self._memory, self._from, self._adds)
        if not self._rows:
            return self._dense_alone
        scale = fixed_point_scale(self._agree(self._largest), self._total)
        rows: dict[str, Rows] = self._merger.merge_fixed(self._rows, scale)
        self._largest, self._rows = 0.0, []
        return Summed(self.buffer, scale, rows)


def on_host(here: device.Device, rows: ByTable) -> dict[str, Rows]:
    """Rows whose values are on a device, brought to the host."""
    return {name: Rows(table.keys, here.read(table.values)) for name, table in rows.items()}


def _adds_of_grains(sums: Sequence[range]) -> list[int]:
    """The additions that follow each grain's gradient."""
    return adds_of(sums, [range(grain, grain + 1) for one in sums for grain in one])


def fixed_point_scale(largest: float, parts: int) -> float:
    """The power of two by which to multiply: ``parts`` addends of at most ``largest`` stay below 2**62.

    >>> fixed_point_scale(1.0, 16) == 2.0**57
    True
    """
    if largest == 0.0:
        return 1.0
    exponent = math.frexp(largest)[1]
    return 2.0 ** min(1000, FIXED_POINT_BITS - (parts - 1).bit_length() - exponent)
