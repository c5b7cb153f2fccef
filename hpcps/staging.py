"""Between a GPU's memory and what moves buffers on the host: memory that is not paged, copies on streams of their own.

A stream is waited for in two places: before a message or a sum of the host's begins to read what was copied down, and
before memory that is copied up is written again. Everything else is ordered on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpcps.collectives.engine import Engine, Start
from hpcps.collectives.pending import Pending
from hpcps.device import Array, Gpu
from hpcps.exchange import Keys, ServerExchange
from hpcps.reduction import Reduction, Shown, Whole
from hpcps.rows import PulledRows, Rows
from hpcps.sums import Summed

Visible = Callable[[int, DTypeLike], Array]
"""Gives memory that the other ranks of the node see"""


class Upload:
    """Arrays of the host, one after the other, to one place on the device.

    Two buffers take turns, so that the next array is written while the last one is copied. What was sent is overwritten
    by what is sent next, after all that kernels were asked for before.
    """

    def __init__(self, device: Gpu, dtype: DTypeLike) -> None:
        self._device, self._dtype = device, np.dtype(dtype)
        self._there = device.empty(0, dtype)
        with device.below as below:
            self._slots = [(below.pinned(0, dtype), below.stream()) for _ in range(2)]

    def send(self, array: Array) -> Array:
        """The array on the device, in the dtype of this place: the same array each time as long as it is as large."""
        (pinned, stream), other = self._slots
        with self._device.below as below:
            stream.synchronize()
            if pinned.size < array.size:
                pinned = below.pinned(array.size, self._dtype)
            filled = pinned[: array.size]
            filled.reshape(array.shape)[...] = array
            if self._there.shape != array.shape:
                self._there = self._device.empty(array.shape, self._dtype)
            if array.size:
                stream.follow()
                stream.to_device(self._there.reshape(-1), filled)
                stream.precede()
        self._slots = [other, (pinned, stream)]
        return self._there


class StagedRows:
    """Rows of tables that are pulled to the host's memory, on a device: sent up as they are picked. What was picked of
    a table is overwritten by what is picked of it next, after all that kernels were asked for before."""

    def __init__(self, pulled: PulledRows, device: Gpu) -> None:
        self._pulled = pulled
        self._uploads = {name: Upload(device, pulled.dtype) for name in pulled.widths}

    def fetch(self, keys: Mapping[str, Array]) -> None:
        self._pulled.fetch(keys)

    def rows(self, name: str, keys: Array) -> Array:
        return self._uploads[name].send(self._pulled.rows(name, keys))


class Staged:
    """A reduction of what is on a device: its gradient is copied down to memory that all ranks of the node see, summed
    there by ``inner``, and copied up again. The update is the device's, of all of the bucket."""

    is_read = False

    def __init__(self, inner: Reduction, device: Gpu, visible: Visible) -> None:
        self.name = f"{inner.name}, through the host's memory"
        self.part, self.residuals = inner.part, inner.residuals
        self.prepare_spread = inner.prepare_spread
        self._inner, self._device, self._visible = inner, device, visible

    def show(self, x: Array, is_wanted: bool) -> Shown | None:
        return None

    def prepare(self, x: Array) -> Start:
        here = self._visible(math.prod(x.shape), x.dtype).reshape(x.shape)
        with self._device.below as below:
            below.pin(here)
            stream = below.stream()
        start = self._inner.prepare(here)
        total = (x, here) if x.ndim == 1 else (x[0], here[0])

        def begin() -> Pending:
            return StagedSum(self._device, stream, (x, here), total, start)

        return begin


class StagedSum:
    """One sum on its way: down, over the ranks, up. ``whole``, ``total``: what is copied down, and up, as pairs of the
    device's array and the host's."""

    def __init__(
        self, device: Gpu, stream: Any, whole: tuple[Array, Array], total: tuple[Array, Array], start: Start
    ) -> None:
        self._device, self._stream, self._total, self._start = device, stream, total, start
        self._sum: Pending | None = None
        with device.below:
            stream.follow()
            stream.to_host(whole[1], whole[0])

    def done(self) -> bool:
        """Goes on to the ranks, for which it may have to wait for the copy: all ranks start their sums in one order."""
        return self._over_ranks().done()

    def wait(self) -> None:
        self._over_ranks().wait()
        there, here = self._total
        with self._device.below:
            self._stream.to_device(there, here)
            self._stream.precede()

    def _over_ranks(self) -> Pending:
        if self._sum is None:
            with self._device.below:
                self._stream.synchronize()
            self._sum = self._start()
        return self._sum


class StagedServer(ServerExchange):
    """Shards in the host's memory, parameters and gradients on a device: each sum is copied down before it is pushed,
    and parameters that were pulled are copied up. Rows that were pulled are sent up where they are read: `StagedRows`.

    ``params``: the dense ones on the device, and where they are pulled to; None where shards have rows alone.
    ``gradient``: where dense sums are to lie on the host, if shards look for them there. The rest is as without.
    """

    def __init__(
        self, device: Gpu, params: tuple[Array, Array] | None, gradient: Array | None, *rest: Any, **more: Any
    ) -> None:
        super().__init__(*rest, **more)
        self.way += ", through the host's memory"
        self._device, self._params, self._gradient = device, params, gradient
        self._rows: dict[str, Array] = {}
        with device.below as below:
            self._stream = below.stream()
            for array in (gradient, *(params or ())[1:]):
                if array is not None:
                    below.pin(array)

    def push(self, step: int, summed: Summed, flush: bool = False) -> None:
        with self._device.below as below:
            self._stream.follow()
            dense = self._dense_below(summed.dense)
            rows = dict(summed.rows)
            for name, (keys, values) in summed.rows.items():
                if isinstance(values, below.array):  # exact ones were brought to the host to be added up
                    rows[name] = Rows(keys, self._values_below(name, values))
            self._stream.synchronize()  # which also waits for the parameters that were copied up
        super().push(step, summed._replace(dense=dense, rows=rows), flush)

    def wait(self, keys: Callable[[], Keys] | None = None) -> None:
        super().wait(keys)
        self._refresh()

    def go_on(self, step: int, keys: Keys | None) -> None:
        super().go_on(step, keys)
        self._refresh()

    def _dense_below(self, dense: Array) -> Array:
        """Where a dense sum of the device is being copied down to; nothing where shards have none of it."""
        if self._gradient is None:
            shape = dense.shape if self._params is not None else (*dense.shape[:-1], 0)
            self._gradient = np.empty(shape, dense.dtype)
            self._device.below.pin(self._gradient)
        if self._gradient.size:
            self._stream.to_host(self._gradient, dense)
        return self._gradient

    def _values_below(self, name: str, values: Array) -> Array:
        """Where rows of a table are being copied down to: pinned memory that is used again once they were pushed."""
        if name not in self._rows or self._rows[name].size < values.size:
            self._rows[name] = self._device.below.pinned(values.size, values.dtype)
        here = self._rows[name][: values.size].reshape(values.shape)
        if values.size:
            self._stream.to_host(here, values)
        return here

    def _refresh(self) -> None:
        if self._params is not None and self._params[1].size:
            with self._device.below:
                self._stream.to_device(*self._params)
                self._stream.precede()


def on_device(engine: Engine, device: Gpu, count: int) -> Reduction:
    """Sums by an MPI library that takes pointers into a GPU's memory; all workers update all of the bucket."""

    def prepare(x: Array) -> Start:
        def begin() -> Pending:
            with device.below as below:
                below.synchronize()  # MPI does not know what is under way
            return engine.start(x)

        return begin

    return Whole("MPI_Iallreduce on the GPU's memory", prepare, count)
