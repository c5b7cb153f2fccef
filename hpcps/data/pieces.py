"""Which rows of a data set are read, and putting together what several files give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hpcps.data.blocks import Array, Block, Csr, Ints, Place, Places, Samples

Rows = range | Ints  # ascending sample numbers; a range may be read without a copy


@dataclass(frozen=True)
class Piece:
    """What one file gives for some rows; labels are as stored, None where the file has none."""

    samples: Samples
    labels: Array | None
    numbers: range | Ints  # line or sample numbers in the file


class Source(Protocol):
    """One data file (with its labels), surveyed but not read."""

    @property
    def file(self) -> str: ...

    @property
    def label_file(self) -> str: ...

    @property
    def noun(self) -> str: ...

    @property
    def count(self) -> int: ...

    @property
    def features(self) -> int: ...  # 0: known only once all is read (libsvm)

    @property
    def dtype(self) -> str: ...  # of the samples as read

    @property
    def sparse(self) -> bool: ...

    @property
    def labelled(self) -> bool: ...

    def read(self, rows: Rows) -> Piece:
        """Read these rows (at least one) of the file; raises DataError."""
        ...


@dataclass(frozen=True)
class Part:
    """What a rank has read of a data set."""

    samples: Samples
    labels: Array | None
    places: Places

    def block(self, labels: Array, low: int, high: int) -> Block:
        """The block of positions low..high-1; samples and labels are views."""
        samples = self.samples.rows(low, high) if isinstance(self.samples, Csr) else self.samples[low:high]
        return Block(samples, labels[low:high], self.places, low)


def read_part(sources: Sequence[Source], rows: Rows) -> Part:
    """Read rows of a data set whose files follow each other; without a copy where they lie in one file."""
    pieces: list[Piece] = []
    places: list[Place] = []
    start = 0
    for source in sources:
        own = rows_between(rows, start, start + source.count)
        start += source.count
        if len(own):
            pieces.append(source.read(own))
            places.append(Place(source.file, source.label_file, source.noun, pieces[-1].numbers))
    if not pieces:
        return _nothing(sources)
    labels = [piece.labels for piece in pieces if piece.labels is not None]
    return Part(
        join([piece.samples for piece in pieces], common_dtype(sources)),
        (labels[0] if len(labels) == 1 else np.concatenate(labels)) if labels else None,
        Places(tuple(places)),
    )


def rows_between(rows: Rows, low: int, high: int) -> Rows:
    """Those of the rows that lie in low..high-1, counted from low."""
    if isinstance(rows, range):
        first, last = max(rows.start, low), min(rows.stop, high)
        return range(first - low, max(last, first) - low)
    first, last = np.searchsorted(rows, [low, high])
    return rows[first:last] - low


def span(rows: Rows) -> tuple[int, int]:
    """The first row and one past the last."""
    return int(rows[0]), int(rows[-1]) + 1


def common_dtype(sources: Sequence[Source]) -> np.dtype[np.generic]:
    """The dtype of a data set: the one that its files have, or one that holds all of theirs."""
    return np.result_type(*(np.dtype(source.dtype) for source in sources))


def _nothing(sources: Sequence[Source]) -> Part:
    source = sources[0]
    labels = np.zeros(0) if source.labelled else None
    if source.sparse:
        empty = Csr(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), source.features)
        return Part(empty, labels, Places(()))
    return Part(np.zeros((0, source.features), common_dtype(sources)), labels, Places(()))


def join(parts: list[Samples], dtype: np.dtype[np.generic]) -> Samples:
    """The samples of several parts, one part after the other; dense ones in ``dtype``."""
    sparse = [part for part in parts if isinstance(part, Csr)]
    if sparse:
        return join_sparse(sparse)
    dense = [part for part in parts if not isinstance(part, Csr)]
    if len(dense) == 1:
        return dense[0].astype(dtype, copy=False)
    return np.concatenate(dense, dtype=dtype, casting="unsafe")


def join_sparse(parts: list[Csr]) -> Csr:
    """The rows of several parts, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0] + [len(part.indices) for part in parts])
    indptr = [part.indptr[:-1] + start for part, start in zip(parts, starts, strict=False)]
    return Csr(
        np.concatenate([*indptr, starts[-1:]]),
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.values for part in parts]),
        max(part.features for part in parts),
    )
