"""What a worker keeps of its gradients on their way to a shard, and pushes later: what codes leave out, and small rows.

What a worker pulls is whole: parameters cannot be sent later.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hpcps_kernels.row_index import RowIndex
from numpy.typing import DTypeLike

from hpcps import aligned
from hpcps.comm.codes import Code
from hpcps.comm.transport import Array
from hpcps.rows import Picked, PulledRows, Rows
from hpcps.server.growing import GrowingRows
from hpcps.sums import Summed

KEPT_BYTES = 1 << 28
"""Of the rows of a table; a worker that has come to keep more pushes all."""
_INDEX_BYTES = 64


class Encoder:
    """What a worker pushes to one shard, (count,), as codes; it keeps what they leave out."""

    def __init__(self, code: Code, count: int, dtype: DTypeLike) -> None:
        self.message = aligned.empty(code.message_bytes(count), np.uint8)
        self._code = code
        self.residual = aligned.zeros(count, dtype)
        """What messages have left out"""

    def encode(self, x: Array) -> Array:
        """Overwrite ``message`` with the codes of ``x`` and of what was left out before; returns it. Raises
        NotFiniteError."""
        self._code.encode(self.message, self.residual, x)
        return self.message

    def take_back(self, x: Array) -> None:
        """The last message, that of ``x``, has come to nothing, and so has ``x``: keep what was left out before, up to
        rounding."""
        self._code.decode_add(self.residual, self.message)
        self.residual -= x


class KeptRows:
    """The rows of a table, ``width`` numbers each, that a worker keeps back: the "significantly modified" and, in the
    form that FTRL asks for (docs/SERVER.md), the "KKT" filter of Li et al., "Scaling Distributed Machine Learning with
    the Parameter Server" (OSDI 2014).

    To a row's gradient is added what is kept of the row. The sum is kept if none of its numbers is beyond the row's
    limit, else pushed: what was pushed and what is kept add up to all gradients. The limit is ``threshold``, or, for a
    row whose weights are all zero, ``zero_threshold`` where that is more; both in the unit of the gradient, a sum over
    samples. A number that is not finite is beyond any limit. ``most_bytes`` bounds what is kept, but for one gradient.
    """

    def __init__(
        self,
        width: int,
        dtype: DTypeLike,
        threshold: float,
        zero_threshold: float,
        kernels: Any,
        most_bytes: int = KEPT_BYTES,
    ) -> None:
        self._threshold, self._zero_threshold = threshold, zero_threshold
        self._kernels = kernels
        self._sums = GrowingRows(width, dtype)  # zeros: nothing is kept of the row
        self._keys = GrowingRows(1, np.int64)
        self._are_zero = GrowingRows(1, np.bool_)  # whether its weights were, as they were last seen
        self._index = RowIndex(kernels)
        self._most = most_bytes // (_INDEX_BYTES + sum(column.row_bytes for column in self._columns()))

    def __len__(self) -> int:
        """How many rows have a place here: those that are kept, and those that were since all was pushed."""
        return len(self._index)

    @property
    def is_full(self) -> bool:
        """Whether :meth:`take_all` is to be called next."""
        return len(self) > self._most

    def take(self, rows: Rows, weights: Array | None = None) -> tuple[Rows, Array]:
        """The rows of a gradient that are to be pushed, with what was kept of them; and which of the given ones they
        are, (k,) bool. ``weights``: the parameters (k, W) of the rows; None: zeros are like others."""
        slots = self._index.find(rows.keys)
        total, known = rows.values.copy(), np.flatnonzero(slots >= 0)
        held = np.empty((len(known), total.shape[1]), total.dtype)
        self._kernels.gather_rows(held, self._sums.array, slots[known])
        self._kernels.scatter_add_rows(total, held, known)
        are_zero = np.zeros(len(total), np.bool_) if weights is None else _largest(weights) == 0
        limits = np.where(are_zero, max(self._threshold, self._zero_threshold), self._threshold)
        are_pushed = ~(_largest(total) <= limits)
        whole, pushed = Rows(rows.keys, total), np.flatnonzero(are_pushed)
        held.fill(0)
        self._kernels.scatter_rows(self._sums.array, held, slots[known])
        self._keep(whole, are_zero, np.flatnonzero(~are_pushed))
        return self._some(whole, pushed), are_pushed

    def take_all(self, rows: Rows, weights: Array | None = None) -> Rows:
        """The rows of a gradient, and all that are kept. Rows of zeros within ``zero_threshold`` stay kept, unless
        there are too many."""
        stay_within = -1.0 if self.is_full else self._zero_threshold
        pushed, _ = self.take(rows, weights)
        part = slice(0, len(self))
        kept = Rows(self._keys.array[part, 0].copy(), self._sums.array[part].copy())
        are_zero, largest = self._are_zero.array[part, 0].copy(), _largest(kept.values)
        stays = are_zero & (largest <= stay_within)
        self._forget()
        self._keep(kept, are_zero, np.flatnonzero(stays & (largest > 0)))
        rest = self._some(kept, np.flatnonzero(~stays & (largest > 0)))
        return Rows(np.concatenate([pushed.keys, rest.keys]), np.concatenate([pushed.values, rest.values]))

    def _keep(self, rows: Rows, are_zero: Array, which: Array) -> None:
        """Keep some rows, instead of what is kept of them."""
        kept = self._some(rows, which)
        for column in self._columns():
            column.reserve(len(self) + len(which))
        slots = self._index.insert(kept.keys)
        self._kernels.scatter_rows(self._sums.array, kept.values, slots)
        self._keys.array[slots, 0] = kept.keys
        self._are_zero.array[slots, 0] = are_zero[which]

    def _forget(self) -> None:
        self._index = RowIndex(self._kernels)
        for column in self._columns():
            column.give_back(0)

    def _some(self, rows: Rows, which: Array) -> Rows:
        values = np.empty((len(which), rows.values.shape[1]), rows.values.dtype)
        self._kernels.gather_rows(values, rows.values, which)
        return Rows(rows.keys[which], values)

    def _columns(self) -> tuple[GrowingRows, ...]:
        return self._sums, self._keys, self._are_zero


class RowFilter:
    """What a worker keeps back of the rows of all its tables, whose parameters are ``pulled``. See :class:`KeptRows`.

    ``rows``: how many rows there were in all gradients; ``pushed``: how many in what was pushed.
    """

    def __init__(self, pulled: PulledRows, threshold: float, zero_threshold: float, kernels: Any) -> None:
        self.rows = self.pushed = 0
        self._pulled = pulled
        self._sees_zeros = zero_threshold > 0
        limits = threshold, zero_threshold
        self._kept = {name: KeptRows(width, pulled.dtype, *limits, kernels) for name, width in pulled.widths.items()}

    def passed(self, gradient: Summed, flush: bool = False) -> Summed:
        """What is to be pushed of a gradient, of rows that were pulled last; ``flush``: and of earlier ones all."""
        self.rows += sum(len(own.keys) for own in gradient.rows.values())
        everything = flush or any(kept.is_full for kept in self._kept.values())
        rows: dict[str, Rows] = {}
        picked: dict[str, Picked] = {}
        for name, own in gradient.rows.items():
            kept, weights = self._kept[name], self._weights(name, own)
            if everything:
                rows[name] = kept.take_all(own, weights)
            else:
                rows[name], are_pushed = kept.take(own, weights)
                picked[name] = Picked(own.keys, are_pushed)
        self.pushed += sum(len(own.keys) for own in rows.values())
        return gradient._replace(rows=rows, picked=picked)

    def _weights(self, name: str, rows: Rows) -> Array | None:
        return self._pulled.rows(name, rows.keys) if self._sees_zeros else None


def _largest(rows: Array) -> Array:
    """The largest magnitude in each row of (k, W)."""
    magnitudes: Array = np.abs(rows)
    return magnitudes[:, 0] if rows.shape[1] == 1 else magnitudes.max(axis=1)
