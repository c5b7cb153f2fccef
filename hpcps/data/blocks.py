"""What loading gives: blocks of samples, and the data set they belong to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Csr:
    """Sparse samples: row i has ``values[indptr[i]:indptr[i+1]]`` in the columns ``indices[...]``.

    Columns are in any order within a row (libsvm: rising; hashed CSV: as the table has them). Hashed ones may occur
    twice, as two entries; a dense row then gets the later value.
    """

    indptr: Ints  # (m+1,) int64
    indices: npt.NDArray[np.int32]  # (nnz,) int32, 0..features-1
    values: npt.NDArray[np.float32]  # (nnz,) float32
    features: int

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def rows(self, low: int, high: int) -> Csr:
        """Rows low..high-1; ``indices`` and ``values`` are views."""
        start, stop = int(self.indptr[low]), int(self.indptr[high])
        indptr = self.indptr[low : high + 1] - start
        return Csr(indptr, self.indices[start:stop], self.values[start:stop], self.features)

    def take(self, index: Ints) -> Csr:
        """Copies of the rows of these numbers, in this order."""
        starts = self.indptr[index]
        counts = self.indptr[index + 1] - starts
        indptr = np.concatenate([[0], np.cumsum(counts)])
        entries = np.repeat(starts - indptr[:-1], counts) + np.arange(indptr[-1])
        return Csr(indptr, self.indices[entries], self.values[entries], self.features)


Samples = Array | Csr


@dataclass(frozen=True)
class Place:
    """Where consecutive samples stand: in one file, at these line or sample numbers."""

    file: str
    label_file: str
    noun: str  # "line" (counted from 1) or "sample" (counted from 0)
    numbers: range | Ints


@dataclass(frozen=True)
class Places:
    """Where the samples of a rank stand, through all files that it read."""

    parts: tuple[Place, ...]

    def where(self, i: int) -> str:
        """The place of sample i of the rank, as in ``digits.csv: line 17``."""
        place, number = self._find(i)
        return f"{place.file}: {place.noun} {number}"

    def where_label(self, i: int) -> str:
        """The place of the label of sample i."""
        place, number = self._find(i)
        return f"{place.label_file}: {place.noun} {number}"

    def _find(self, i: int) -> tuple[Place, int]:
        ends = list(accumulate(len(part.numbers) for part in self.parts))
        k = bisect_right(ends, i)
        return self.parts[k], int(self.parts[k].numbers[i - ends[k]])


@dataclass(frozen=True)
class Block:
    """The samples of one block (or of one file), with their labels."""

    samples: Samples  # (m, D) C-contiguous: uint8, int8, int16, int32, int64, float32 or float64; or Csr
    labels: Array  # (m,) int64 class numbers 0..K-1, or float64
    places: Places
    first: int = 0  # position of sample 0 in ``places``

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def window(self) -> int:
        """Samples that are in memory at a time; 0: all are."""
        return 0

    def near(self, index: Ints) -> tuple[Samples, Array, Ints]:
        """Samples and labels in memory that hold those of the given numbers, and the numbers that they have there."""
        return self.samples, self.labels, index

    def where(self, i: int) -> str:
        """Say where sample i comes from, as in ``digits.csv: line 17`` or ``train.npz: sample 17``.

        Lines are counted from 1, samples of binary files from 0.
        """
        return self.places.where(self.first + i)

    def where_label(self, i: int) -> str:
        """Like ``where``, naming the file that holds the label of sample i."""
        return self.places.where_label(self.first + i)


def joined(blocks: Sequence[Block]) -> Block | None:
    """One block of the samples of several, without a copy; None unless they lie one after the other in one array."""
    first = blocks[0]
    if len(blocks) == 1:
        return first
    count = 0
    for block in blocks:
        if block.places is not first.places or block.first != first.first + count or block.window:
            return None
        if not (_lies_at(block.samples, first.samples, count) and _lies_at(block.labels, first.labels, count)):
            return None
        count += len(block)
    samples, labels = (_longer(x, count) for x in (first.samples, first.labels) if isinstance(x, np.ndarray))
    return Block(samples, labels, first.places, first.first)


def _longer(x: Array, rows: int) -> Array:
    """The view of ``rows`` rows that begins where x does."""
    return as_strided(x, (rows, *x.shape[1:]), x.strides, writeable=False)


def _lies_at(samples: Samples, first: Samples, row: int) -> bool:
    """Whether an array begins where row ``row`` of another would."""
    if isinstance(samples, Csr) or isinstance(first, Csr):
        return False
    place = samples.__array_interface__["data"][0] - first.__array_interface__["data"][0]
    alike = samples.strides == first.strides and samples.shape[1:] == first.shape[1:]
    return alike and samples.flags.c_contiguous and place == row * first.strides[0]


@dataclass(frozen=True)
class Dataset:
    """A data set as one rank holds it: facts about the whole, and the rank's own blocks.

    ``read`` gives a block of any training samples by their numbers, ascending, in memory or in windows as the others;
    raises DataError.
    """

    name: str
    features: int
    classes: Ints | None  # (K,) the original labels, ascending; None for regression
    shift: Floats  # (D,) model input = (x - shift) * scale
    scale: Floats  # (D,)
    train_count: int  # samples of all ranks
    test_count: int
    train: dict[int, Block]  # the owned block numbers
    test: dict[int, Block]
    read: Callable[[range | Ints], Block]
    sparse: bool = False


def find_bad(block: Block) -> str | None:
    """Name the first NaN or infinity of a block as ``train.npy: sample 17, feature 3 is nan``, or give None.

    Reads all of the block, also where it is memory-mapped: meant for a loss that turned out not finite.
    """
    found = _bad_value(block.samples)
    if found is not None:
        row, column, value = found
        return f"{block.where(row)}, feature {column} is {value}"
    if block.labels.dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(block.labels))
        if bad.size:
            return f"{block.where_label(int(bad[0]))}, the label is {block.labels[bad[0]]}"
    return None


def _bad_value(samples: Samples) -> tuple[int, int, float] | None:
    """Row, column and value of the first value that is not finite."""
    if isinstance(samples, Csr):
        bad = np.flatnonzero(~np.isfinite(samples.values))
        if not bad.size:
            return None
        row = int(np.searchsorted(samples.indptr, bad[0], side="right")) - 1
        return row, int(samples.indices[bad[0]]), float(samples.values[bad[0]])
    if samples.dtype.kind != "f":
        return None
    for low in range(0, len(samples), CHUNK_ROWS):
        chunk = samples[low : low + CHUNK_ROWS]
        finite = np.isfinite(chunk)
        if not finite.all():
            row, column = (int(n) for n in np.argwhere(~finite)[0])
            return low + row, column, float(chunk[row, column])
    return None
