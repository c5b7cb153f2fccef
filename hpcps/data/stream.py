"""Samples that stay in their text files: blocks that are read in windows, as training and evaluation come to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from hpcps.data.blocks import Array, Block, Csr, Ints, Places, Samples
from hpcps.data.csv import CsvSource
from hpcps.data.libsvm import LibsvmSource
from hpcps.data.pieces import Rows, Source, join
from hpcps.errors import ConfigError

Read = Callable[[Rows], Block]


def is_text(source: Source) -> bool:
    """Whether the file is one that is streamed: other ones are memory-mapped, packed or small."""
    return isinstance(source, LibsvmSource | CsvSource)


def check_streamable(sources: Sequence[Source], scale: str) -> None:
    """Raise ConfigError for what ``data.window`` does not go with."""
    for source in sources:
        if not is_text(source):
            raise ConfigError(f"{source.file}: data.window is for text (libsvm, CSV); leave it out")
    if scale not in ("none", "bytes"):
        raise ConfigError(f"data.scale = '{scale}' needs all samples in memory; with data.window use none or bytes")


@dataclass
class Slot:
    """Room for one window, for a block or for several that are visited one after the other."""

    owner: StreamedBlock | None = None
    number: int = -1
    window: Block | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamedBlock(Block):
    """A block of which one window is in memory. ``samples`` and ``labels`` are empty: they show the kinds.

    Not to be used by two threads at a time. Reading a window raises DataError where its file has changed.
    """

    rows: Rows
    size: int  # samples of a window
    read: Read
    slot: Slot = field(default_factory=Slot)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def window(self) -> int:
        return self.size

    def near(self, index: Ints) -> tuple[Samples, Array, Ints]:
        """The window that holds these samples; copies of the samples alone where they lie in several.

        Reads windows that are not in memory, so numbers should rise from window to window.
        """
        numbers = index // self.size
        wanted = np.unique(numbers)
        if len(wanted) == 1:
            window = self._held(int(wanted[0]))
            return window.samples, window.labels, index - wanted[0] * self.size
        return together(self, numbers, [self._picked(int(n), index[numbers == n] - n * self.size) for n in wanted])

    def where(self, i: int) -> str:
        return self.read(self.rows[i : i + 1]).where(0)

    def where_label(self, i: int) -> str:
        return self.read(self.rows[i : i + 1]).where_label(0)

    def _picked(self, number: int, index: Ints) -> tuple[Samples, Array]:
        window = self._held(number)
        return picked(window.samples, window.labels, index)

    def _held(self, number: int) -> Block:
        """The window of this number, which takes the place of the one before."""
        slot = self.slot
        if slot.window is None or slot.owner is not self or slot.number != number:
            slot.window = None  # first, so that its memory is free
            low = number * self.size
            slot.owner, slot.number, slot.window = self, number, self.read(self.rows[low : low + self.size])
        return slot.window


def streamed(rows: Sequence[Rows], size: int, read: Read, nothing: Block, slot: Slot | None = None) -> list[Block]:
    """A block of each of the ``rows``; they share the ``slot`` if one is given."""
    return [
        StreamedBlock(nothing.samples, nothing.labels, Places(()), rows=own, size=size, read=read, slot=slot or Slot())
        for own in rows
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class ChainedBlock(Block):
    """Several streamed blocks as one, each with a window of its own: the samples of one after those of the other."""

    blocks: Sequence[Block]

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    @property
    def window(self) -> int:
        return self.blocks[0].window

    def near(self, index: Ints) -> tuple[Samples, Array, Ints]:
        """Copies of the samples alone."""
        starts = self._starts()
        numbers = np.searchsorted(starts, index, side="right") - 1
        pieces = []
        for n in np.unique(numbers):
            pieces.append(picked(*self.blocks[n].near(index[numbers == n] - starts[n])))
        return together(self, numbers, pieces)

    def where(self, i: int) -> str:
        block, own = self._find(i)
        return block.where(own)

    def where_label(self, i: int) -> str:
        block, own = self._find(i)
        return block.where_label(own)

    def _starts(self) -> Ints:
        return np.cumsum([0, *map(len, self.blocks[:-1])])

    def _find(self, i: int) -> tuple[Block, int]:
        starts = self._starts()
        number = int(np.searchsorted(starts, i, side="right")) - 1
        return self.blocks[number], i - int(starts[number])


def chained(blocks: Sequence[Block]) -> Block:
    """One block of the samples of several streamed ones."""
    first = blocks[0]
    return first if len(blocks) == 1 else ChainedBlock(first.samples, first.labels, Places(()), blocks=blocks)


def picked(samples: Samples, labels: Array, index: Ints) -> tuple[Samples, Array]:
    """Copies of the samples of these numbers, and their labels."""
    return samples.take(index) if isinstance(samples, Csr) else samples[index], labels[index]


def together(nothing: Block, numbers: Ints, pieces: Sequence[tuple[Samples, Array]]) -> tuple[Samples, Array, Ints]:
    """What :meth:`Block.near` gives of pieces in ascending order, of which sample i lies in that of ``numbers[i]``."""
    places = np.empty(len(numbers), np.int64)
    places[np.argsort(numbers, kind="stable")] = np.arange(len(numbers))
    samples = join([nothing.samples, *(samples for samples, _ in pieces)], np.dtype(np.float32))
    return samples, np.concatenate([nothing.labels, *(labels for _, labels in pieces)]), places


@dataclass(frozen=True)
class Found:
    """What a look at all samples of a rank tells: the features up to the largest index, and the labels that occur."""

    features: int
    labels: Array  # (K,) ascending
    firsts: Ints  # (K,) the sample where each occurs first


def scan(rows: Rows, size: int, read: Read, with_labels: bool) -> Found:
    """Read the rows window by window, and keep none; raises DataError for malformed ones."""
    found = Found(0, np.empty(0, np.int64), np.empty(0, np.int64))
    for low, window in _windows(rows, size, read):
        features = window.samples.features if isinstance(window.samples, Csr) else window.samples.shape[1]
        labels, firsts = np.unique(window.labels if with_labels else window.labels[:0], return_index=True)
        joined, kept = np.unique(np.concatenate([found.labels, labels]), return_index=True)
        found = Found(max(found.features, features), joined, np.concatenate([found.firsts, low + firsts])[kept])
        del window
    return found


def _windows(rows: Rows, size: int, read: Read) -> Iterator[tuple[int, Block]]:
    for low in range(0, len(rows), size):
        yield low, read(rows[low : low + size])
