"""From blocks of stored samples to the batches that models take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import numpy as np

from hpcps import aligned
from hpcps.data import Block, Csr
from hpcps.errors import DataError
from hpcps.models import Array, Batch, Sparse
from hpcps.tables import Tables


class Loader(Protocol):
    """Brings samples of one block into model input: converted to the training dtype, shifted and scaled."""

    def load(self, index: Array) -> Batch:
        """The samples of the given numbers (int64) of the block. Valid until the next call, which may give the same
        batch with other contents. Raises DataError."""


class Loaders:
    """Makes the loaders of a model's blocks: of dense samples where the model has no tables.

    ``shift``, ``scale`` (D,): model input is (x - shift) * scale.
    """

    def __init__(self, tables: Tables, shift: Array, scale: Array, dtype: str, kernels: Any) -> None:
        self.tables = tables
        self.shift = shift.astype(dtype)
        self.scale = scale.astype(dtype)
        self.is_unscaled = bool((scale == 1).all())
        self.kernels = kernels
        self.on_host: Loaders = self
        """Those whose batches are in the host's memory"""

    def uploaded(self, source: Any) -> Any:
        """A loader or feed of the host's memory, with batches where these are."""
        return source

    def of(self, block: Block) -> Loader:
        """The loader of a block."""
        return SparseLoader(block, self) if self.tables.names else DenseLoader(block, self)

    def room(self, block: Block, count: int) -> Batch:
        """Memory for so many dense samples of a block, and their labels."""
        dtype = self.shift.dtype
        labels = dtype if block.labels.dtype.kind == "f" else block.labels.dtype
        return Batch(aligned.empty((count, len(self.shift)), dtype), np.empty(count, labels))


class DenseLoader:
    """Samples as (n, D). As long as there are as many, they are written to the same batch; the first is ``room``."""

    def __init__(self, block: Block, how: Loaders, room: Batch | None = None) -> None:
        self._block = block
        self._how = how
        self._gather: Callable[[], None] | None = None  # of a block that is in memory; a window is not to be held
        self._write_to(how.room(block, 0) if room is None else room)

    def load(self, index: Array) -> Batch:
        if len(index) != len(self._index):
            self._write_to(self._how.room(self._block, len(index)))
        gather, labels = self._gather, self._block.labels
        if gather is None:
            samples, labels, index = self._block.near(index)
            gather = self._bound(samples)
        self._index[:] = index
        gather()
        labels.take(self._index, out=self._labels, mode="clip")  # gather has seen that none is outside
        if self._labels is not self._batch.labels:
            self._batch.labels[:] = self._labels
        return self._batch

    def _write_to(self, room: Batch) -> None:
        self._batch = room
        self._index = np.empty(len(room.labels), np.int64)
        stored = self._block.labels.dtype
        self._labels = room.labels if stored == room.labels.dtype else np.empty(len(room.labels), stored)
        self._gather = None if self._block.window else self._bound(self._block.samples)

    def _bound(self, samples: Any) -> Callable[[], None]:
        """What writes the samples of the numbers in ``_index``."""
        how, into = self._how, self._batch.samples
        if isinstance(samples, Csr):
            columns = samples.indptr, samples.indices, samples.values
            bound = how.kernels.gather_csr.bind(into, *columns, self._index, how.shift, how.scale)
        else:
            bound = how.kernels.gather.bind(into, samples, self._index, how.shift, how.scale)
        return cast(Callable[[], None], bound)


class SparseLoader:
    """Samples as entries whose columns are numbers of table rows.

    Of dense samples each feature is an entry; where the model has fields, each feature is an id.
    """

    def __init__(self, block: Block, how: Loaders) -> None:
        self._block = block
        self._tables = how.tables
        self._shift, self._scale, self._kernels = how.shift, how.scale, how.kernels
        self._is_unscaled = how.is_unscaled
        self._seen: Any = None
        self._all_ones = False

    def rows(self, index: Array) -> tuple[tuple[Array, Array, Array], Array]:
        """The samples of the given numbers as (indptr, entries, values), and their labels in the training dtype."""
        samples, labels, near = self._block.near(index)
        return self._entries(samples, near, index), labels.take(near).astype(self._shift.dtype)

    def load(self, index: Array) -> Batch:
        samples, labels, near = self._block.near(index)
        indptr, entries, values = self._entries(samples, near, index)
        try:
            if self._tables.fields > 1 and (np.diff(indptr) != self._tables.fields).any():
                raise self._uneven(indptr, index)
            columns, keys = self._tables.renumber(entries)
        except IndexError:
            raise self._unknown(indptr, entries, index) from None
        return Batch(Sparse(indptr, columns, values), _labels(labels, near, self._shift.dtype), keys)

    def _entries(self, samples: Any, near: Array, index: Array) -> tuple[Array, Array, Array]:
        if isinstance(samples, Csr):
            return self._take(samples, near)
        if self._tables.fields > 1:
            return self._ids(samples, near, index)
        return self._all_features(samples, near)

    def _take(self, samples: Csr, index: Array) -> tuple[Array, Array, Array]:
        """Rows of sparse samples, one after the other."""
        if samples is not self._seen:
            self._seen = samples
            self._all_ones = self._is_unscaled and bool((samples.values == 1).all())
        count = int((samples.indptr[index + 1] - samples.indptr[index]).sum())
        indptr, entries = np.empty(len(index) + 1, np.int64), np.empty(count, np.int32)
        values = np.empty(0 if self._all_ones else count, self._scale.dtype)
        stored = (samples.indptr, samples.indices, samples.values)
        scale = self._scale[:0] if self._is_unscaled else self._scale
        self._kernels.csr_take(indptr, entries, values, *stored, index, scale, len(self._scale))
        return indptr, entries, values

    def _all_features(self, samples: Array, index: Array) -> tuple[Array, Array, Array]:
        """Dense samples, every feature an entry."""
        features = len(self._shift)
        values = np.empty((len(index), features), self._shift.dtype)
        self._kernels.gather(values, samples, index, self._shift, self._scale)
        entries = np.tile(np.arange(features, dtype=np.int32), len(index))
        return np.arange(len(index) + 1) * features, entries, values.reshape(-1)

    def _ids(self, samples: Array, near: Array, index: Array) -> tuple[Array, Array, Array]:
        """Dense samples whose features are ids."""
        found = samples[near]
        with np.errstate(invalid="ignore"):  # what is no int32 is found below
            entries = found.astype(np.int32)
        if not (entries == found).all():
            sample, field = (int(n) for n in np.argwhere(entries != found)[0])
            where = self._block.where(int(index[sample]))
            raise DataError(f"{where}, feature {field} is {found[sample, field]}, expected an id: a whole number >= 0")
        indptr = np.arange(len(index) + 1) * found.shape[1]
        return indptr, entries.reshape(-1), np.empty(0, self._shift.dtype)

    def _uneven(self, indptr: Array, index: Array) -> DataError:
        sample = int(np.argmax(np.diff(indptr) != self._tables.fields))
        count = int(indptr[sample + 1] - indptr[sample])
        where = self._block.where(int(index[sample]))
        return DataError(f"{where} has {count} entries; this model needs {self._tables.fields} of each sample")

    def _unknown(self, indptr: Array, entries: Array, index: Array) -> DataError:
        """Which entry is no row of its table."""
        sizes = np.resize(self._tables.sizes if self._tables.fields > 1 else self._tables.sizes[:1], len(entries))
        bad = int(np.argmax((entries < 0) | (entries >= sizes)))
        where = self._block.where(int(index[int(np.searchsorted(indptr, bad, side="right")) - 1]))
        return DataError(f"{where}: {entries[bad]} is none of the {sizes[bad]} ids or features of the model")


def _labels(labels: Array, index: Array, dtype: np.dtype[Any]) -> Array:
    """Class numbers as they are, values in the training dtype."""
    chosen: Array = labels.take(index)
    return chosen.astype(dtype) if chosen.dtype.kind == "f" else chosen
