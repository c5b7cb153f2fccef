"""Batches in the memory of a GPU: gathered there from samples that stay there, or loaded on the host and sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

from hpcps.data import Block, Csr
from hpcps.device import Gpu
from hpcps.loader import Loader, Loaders
from hpcps.models import Array, Batch, Sparse
from hpcps.staging import Upload

RESIDENT_PART = 0.5
"""Of the memory that is left, which a block's samples may take to stay there; activations, gradients and the kernels'
own memory are still to come."""


class Source(Protocol):
    """A loader, or a feed."""

    def load(self, what: Any, /) -> Batch: ...


class DeviceLoaders(Loaders):
    """Makes loaders whose batches are on a GPU, out of ``on_host``, those of the host.

    Labels are class numbers of ``is_multiclass`` models, else floats in the dtype of the parameters.
    """

    def __init__(self, on_host: Loaders, device: Gpu, is_multiclass: bool) -> None:
        super().__init__(on_host.tables, on_host.shift, on_host.scale, on_host.shift.dtype.name, device.kernels)
        self.on_host = on_host
        self.device = device
        self.label_dtype = np.dtype(np.int64) if is_multiclass else self.shift.dtype
        self.there = device.put(self.shift), device.put(self.scale)
        self._stored: WeakValueDictionary[int, Stored] = WeakValueDictionary()
        """By block, as long as a loader uses it"""

    def of(self, block: Block) -> Loader:
        """The loader of a block, which is kept on the device if it fits."""
        stored = None if self.tables.names or block.window else self._resident(block)
        return self.uploaded(self.on_host.of(block)) if stored is None else ResidentLoader(stored, self)

    def uploaded(self, source: Any) -> Any:
        return Uploading(source, self)

    def _resident(self, block: Block) -> Stored | None:
        """The block on the device, the same for all its loaders; None if it is too large."""
        stored = self._stored.get(id(block))
        if stored is None:
            columns = _columns(block)
            if sum(one.nbytes for one in columns) > RESIDENT_PART * self.device.free_bytes():
                return None
            stored = Stored(block, [self.device.put(one) for one in columns])
            self._stored[id(block)] = stored
        return stored


class Stored:
    """Samples of a block on the device: one array (n, D), or indptr, indices and values."""

    def __init__(self, block: Block, columns: Sequence[Array]) -> None:
        self.block, self.columns = block, columns


class ResidentLoader:
    """Samples as (n, D), gathered on the device: nothing but their numbers and labels is sent. As long as there are as
    many, they are written to the same batch."""

    def __init__(self, stored: Stored, how: DeviceLoaders) -> None:
        self._stored, self._how = stored, how
        self._numbers, self._labels = Upload(how.device, np.int64), Upload(how.device, how.label_dtype)
        self._index: Array | None = None

    def load(self, index: Array) -> Batch:
        there, labels = self._numbers.send(index), self._labels.send(self._stored.block.labels.take(index))
        if there is not self._index:
            self._index = there
            self._bind(there, labels)
        self._gather()
        return self._batch

    def _bind(self, index: Array, labels: Array) -> None:
        how, stored = self._how, self._stored
        self._batch = Batch(how.device.empty((len(index), len(how.shift)), how.shift.dtype), labels)
        gather = how.kernels.gather_csr if len(stored.columns) > 1 else how.kernels.gather
        self._gather: Callable[[], None] = gather.bind(self._batch.samples, *stored.columns, index, *how.there)


class Uploading:
    """What a loader or feed of the host loads, sent to the device: dense samples always to the same batch, as long as
    there are as many."""

    def __init__(self, source: Source, how: DeviceLoaders) -> None:
        self._source, self._how = source, how
        self._uploads: dict[str, Upload] = {}
        self._batch = Batch(None, np.empty(0))

    def begin(self, orders: Sequence[Any]) -> None:
        """Of a feed: begin an epoch."""
        self._source.begin(orders)  # type: ignore[attr-defined]

    def load(self, what: Any) -> Batch:
        batch = self._source.load(what)
        labels = self._send("labels", batch.labels, self._how.label_dtype)
        if isinstance(batch.samples, Sparse):
            return Batch(self._sparse(batch.samples), labels, batch.keys)
        samples = self._send("samples", batch.samples)
        if samples is not self._batch.samples or labels is not self._batch.labels:
            self._batch = Batch(samples, labels)
        return self._batch

    def _sparse(self, samples: Sparse) -> Sparse:
        columns = tuple(self._send(f"column {number}", one) for number, one in enumerate(samples.columns))
        return Sparse(self._send("indptr", samples.indptr), columns, self._send("values", samples.values))

    def _send(self, name: str, array: Array, dtype: Any = None) -> Array:
        if name not in self._uploads:
            self._uploads[name] = Upload(self._how.device, array.dtype if dtype is None else dtype)
        return self._uploads[name].send(array)


def _columns(block: Block) -> list[Array]:
    samples = block.samples
    return [samples.indptr, samples.indices, samples.values] if isinstance(samples, Csr) else [samples]
