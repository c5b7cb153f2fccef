"""Loading: every rank reads the blocks it owns, and all ranks agree on classes, scaling and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from hpcps.data.blocks import CHUNK_ROWS, Array, Block, Csr, Dataset, Ints, Samples, find_bad
from hpcps.data.labels import Task, check_classes, class_numbers, finite_labels, whole_labels
from hpcps.data.libsvm import LibsvmSource
from hpcps.data.pieces import Part, Rows, read_part
from hpcps.data.scaling import shift_and_scale
from hpcps.data.source import (
    AnySource,
    DataOptions,
    Opening,
    check_agreement,
    open_held_out,
    survey_together,
)
from hpcps.data.split import split_rows
from hpcps.data.stream import Found, Read, Slot, check_streamable, is_text, scan, streamed
from hpcps.errors import DataError
from hpcps.together import Together, agree

Cut = Callable[[int], Sequence[int]]
MOST_GUESSED_FEATURES = 1 << 27
MOST_IDS = 1 << 31
MOST_FLOAT32_IDS = 1 << 24
"""Whole numbers above this are not all told apart by float32."""


def load_data(
    section: DataOptions,
    *,
    task: Task,
    cut: Cut,
    owned: range,
    cut_test: Cut,
    owned_test: range,
    together: Together,
    seed: int,
    min_train: int = 1,
) -> Dataset:
    """Load this rank's blocks of a training and a held-out set.

    ``cut(n)`` gives the bounds of the blocks of n samples (blocks + 1 ascending numbers, 0..n); a rank
    reads the blocks ``owned``, a contiguous range; the ranges of the ranks ascend. What a block holds
    depends on ``cut`` and ``seed`` alone. A collective, also for a rank that owns no block: blocks until
    all ranks have read theirs. Raises DataError or ConfigError, the same on every rank; the message names
    the file and the line or sample.
    """
    found = survey_together(section, together)
    train_rows, test_rows = _rows(found.train, found.test, section, seed)
    if len(train_rows) < min_train:
        raise DataError(
            f"train.batch = {min_train} is larger than the {len(train_rows)} training samples of {section.path}"
        )
    train = Share(found.train, train_rows, cut(len(train_rows)), owned)
    test = Share(found.test or found.train, test_rows, cut_test(len(test_rows)), owned_test).unless_empty()
    load = _stream if section.window else _read
    dataset = load(train, test, section, task, together)
    read_rows = dataset.read

    def read(numbers: Rows) -> Block:
        rows, _ = _rows(found.train, found.test, section, seed)  # drawn again rather than kept: there may be many
        if isinstance(numbers, range):
            return read_rows(rows[numbers.start : numbers.stop])
        return read_rows(numbers if isinstance(rows, range) else rows[numbers])

    return replace(dataset, read=read)


@dataclass(frozen=True)
class Share:
    """What a rank owns of a training or held-out set: the blocks ``owned`` of those that ``bounds`` cut it into."""

    sources: list[AnySource]
    rows: Rows
    bounds: Sequence[int]
    owned: range

    def unless_empty(self) -> Share:
        """Without blocks where there are no rows."""
        return self if len(self.rows) else replace(self, bounds=[0], owned=range(0))

    @property
    def start(self) -> int:
        """The first own row, by its place among all rows."""
        return self.bounds[self.owned.start] if len(self.owned) else 0

    @property
    def stop(self) -> int:
        return self.bounds[self.owned.stop] if len(self.owned) else 0

    @property
    def own(self) -> Rows:
        """The own rows, without keeping the others in memory."""
        own = self.rows[self.start : self.stop]
        return own if isinstance(own, range) else own.copy()

    def each(self) -> list[slice]:
        """The own blocks, as slices of the own rows."""
        return [slice(self.bounds[n] - self.start, self.bounds[n + 1] - self.start) for n in self.owned]


def _read(train: Share, test: Share, section: DataOptions, task: Task, together: Together) -> Dataset:
    """All own blocks, in memory."""
    parts = agree(together, lambda: [_checked(read_part(one.sources, one.own), task) for one in (train, test)])
    features = train.sources[0].features or _most_features(map(_features, parts), together, section.path)
    parts = [_with_features(part, features) for part in parts]
    classes = _classes(_labels(parts[0]), task, train.sources, section.path, together)
    blocks = _blocks(train, parts[0], _numbered(parts[0], classes))
    test_labels = agree(together, lambda: _numbered(parts[1], classes))
    shift, scale = shift_and_scale(
        section.scale, list(blocks.values()), features, len(train.rows), train.sources[0].sparse, together
    )
    return Dataset(
        name=section.path,
        features=features,
        classes=classes,
        shift=shift,
        scale=scale,
        train_count=len(train.rows),
        test_count=len(test.rows),
        train=blocks,
        test=_blocks(test, parts[1], test_labels),
        read=_reader(train.sources, task, features, classes),
        sparse=train.sources[0].sparse,
    )


def _stream(train: Share, test: Share, section: DataOptions, task: Task, together: Together) -> Dataset:
    """All own blocks, in their files; they are looked through once, for faults, features and classes."""
    agree(together, lambda: check_streamable([*train.sources, *test.sources], section.scale))
    shares, own = (train, test), (train.own, test.own)
    found = agree(
        together,
        lambda: [
            scan(rows, section.window, _reader(share.sources, task), task != "regression")
            for share, rows in zip(shares, own, strict=True)
        ],
    )
    features = train.sources[0].features or _most_features((one.features for one in found), together, section.path)
    classes = _classes(found[0].labels, task, train.sources, section.path, together)
    read, read_test = (_reader(share.sources, task, features, classes) for share in shares)
    agree(together, lambda: _check_known(found[1], own[1], classes, read_test))
    nothing = read(range(0))
    shift, scale = shift_and_scale(section.scale, [], features, len(train.rows), train.sources[0].sparse, together)
    blocks = streamed([own[0][at] for at in train.each()], section.window, read, nothing)
    slot = Slot()  # held-out blocks are visited one after the other
    test_blocks = streamed([own[1][at] for at in test.each()], section.window, read_test, nothing, slot)
    return Dataset(
        name=section.path,
        features=features,
        classes=classes,
        shift=shift,
        scale=scale,
        train_count=len(train.rows),
        test_count=len(test.rows),
        train=dict(zip(train.owned, blocks, strict=True)),
        test=dict(zip(test.owned, test_blocks, strict=True)),
        read=lambda rows: streamed([rows], section.window, read, nothing)[0],
        sparse=train.sources[0].sparse,
    )


def _reader(sources: list[AnySource], task: Task, features: int = 0, classes: Ints | None = None) -> Read:
    """Reads rows as a block; with ``features`` as soon as they are known, and labels numbered by the ``classes``."""
    known = [
        msgspec.structs.replace(one, features=features) if isinstance(one, LibsvmSource) and features else one
        for one in sources
    ]

    def read(rows: Rows) -> Block:
        part = _checked(read_part(known, rows), task)
        return part.block(_numbered(part, classes), 0, len(rows))

    return read


def _reader_without_labels(sources: list[AnySource], task: Task) -> Read:
    def read(rows: Rows) -> Block:
        part = read_part(sources, rows)
        _check_features(part)
        unknown = np.full(len(rows), np.nan) if task == "regression" else np.full(len(rows), -1, np.int64)
        return part.block(unknown, 0, len(rows))

    return read


def _check_known(found: Found, rows: Rows, classes: Ints | None, read: Read) -> None:
    """Raise DataError for the first row whose label is not one of the classes."""
    if classes is not None:
        unknown = found.firsts[~np.isin(found.labels, classes)]
        if unknown.size:
            first = int(unknown.min())
            read(rows[first : first + 1])


def count_ids(dataset: Dataset, together: Together) -> tuple[int, ...]:
    """For each feature of dense samples that are ids: one more than the largest of all ranks' training and held-out
    samples. A collective. Raises DataError for what is no id, on all ranks."""
    blocks = [*dataset.train.values(), *dataset.test.values()]
    own = agree(together, lambda: [_largest_ids(block) for block in blocks])
    largest = together.gather(np.array(own, np.int64).reshape(-1)).reshape(-1, dataset.features)
    return tuple(int(count) + 1 for count in largest.max(axis=0))


def check_counts(dataset: Dataset, together: Together) -> None:
    """Raise DataError, on all ranks, for a negative label in any rank's samples. A collective."""

    def look_through() -> None:
        for block in [*dataset.train.values(), *dataset.test.values()]:
            for start in range(0, len(block), CHUNK_ROWS):
                _, labels, index = block.near(np.arange(start, min(start + CHUNK_ROWS, len(block))))
                bad = np.flatnonzero(labels[index] < 0)
                if bad.size:
                    where = block.where_label(start + int(bad[0]))
                    raise DataError(
                        f"{where}: the label is {labels[index][bad[0]]}; model.loss = 'poisson' needs counts"
                    )

    agree(together, look_through)


def count_entries(dataset: Dataset, together: Together) -> int:
    """How many entries every sample of all ranks has, held-out ones included; 0 where they differ. A collective.

    A dense sample has an entry a feature.
    """
    if not dataset.sparse:
        return dataset.features
    counts: set[int] = set()
    for block in [*dataset.train.values(), *dataset.test.values()]:
        for samples, index, _ in _looked_through(block):
            assert isinstance(samples, Csr)
            counts |= set((samples.indptr[index + 1] - samples.indptr[index]).tolist())
    found = np.unique(together.gather(np.array(sorted(counts), np.int64)))
    return int(found[0]) if len(found) == 1 else 0


def _largest_ids(block: Block) -> Ints:
    largest = np.full(block.samples.shape[1], -1) if not isinstance(block.samples, Csr) else np.zeros(0, np.int64)
    for held, index, start in _looked_through(block):
        assert not isinstance(held, Csr)
        samples = held[index]
        most = MOST_FLOAT32_IDS if samples.dtype == np.float32 else MOST_IDS
        bad = (samples < 0) | (samples >= most) | (samples != np.trunc(samples))
        if bad.any():
            row, column = (int(n) for n in np.argwhere(bad)[0])
            remedy = f"ids are whole numbers from 0 to {most - 1}"
            raise DataError(f"{block.where(start + row)}, feature {column} is {samples[row, column]}; {remedy}")
        largest = np.maximum(largest, samples.max(axis=0)).astype(np.int64)
    return largest


def _looked_through(block: Block) -> Iterator[tuple[Samples, Ints, int]]:
    """All samples of a block in turn: what holds some, their numbers there, and the number of the first."""
    for start in range(0, len(block), CHUNK_ROWS):
        samples, _, index = block.near(np.arange(start, min(start + CHUNK_ROWS, len(block))))
        yield samples, index, start


def load_samples(path: str, options: DataOptions, *, features: int, classes: Ints | None, with_labels: bool) -> Block:
    """Load all samples of a file, folder, glob or built-in name for a trained model, in one process.

    Where the data set has held-out samples of its own, these are taken. With ``options.window`` text is streamed.
    Labels (m,) are class numbers by the stored ``classes``, or float64 where these are None; without
    ``with_labels`` they are not looked at: -1, or NaN. ``options.labels`` counts only where ``path`` is
    ``options.path``. Raises DataError, also where the number of features is not the model's or a label is not one of
    the classes.
    """
    label_file = options.labels if path == options.path else ""
    sources = open_held_out(path, Opening(options, label_file, with_labels, features))
    check_agreement(sources)
    if sources[0].features != features:
        raise DataError(f"{path}: {sources[0].features} features, but the model has {features}")
    task: Task = "regression" if classes is None else "multiclass"
    read = _reader(sources, task, classes=classes) if with_labels else _reader_without_labels(sources, task)
    rows = range(sum(source.count for source in sources))
    if options.window and all(map(is_text, sources)):
        return streamed([rows], options.window, read, read(range(0)))[0]
    return read(rows)


def _rows(train: list[AnySource], test: list[AnySource], section: DataOptions, seed: int) -> tuple[Rows, Rows]:
    count = sum(source.count for source in train)
    if test:
        return range(count), range(sum(source.count for source in test))
    return split_rows(count, section.test_fraction, seed, section.path)


def _checked(part: Part, task: Task) -> Part:
    """The part with whole (classifier) or finite (regression) labels; raises DataError."""
    check = finite_labels if task == "regression" else whole_labels
    part = replace(part, labels=check(_labels(part), part.places.where_label))
    _check_features(part)
    return part


def _check_features(part: Part) -> None:
    """Raise DataError for a feature that is not finite, where the samples are in memory anyway."""
    if not isinstance(part.samples, Csr) and not is_mapped(part.samples):
        bad = find_bad(part.block(np.zeros(len(part.samples)), 0, len(part.samples)))
        if bad is not None:
            raise DataError(f"{bad}; features must be finite")


def is_mapped(samples: Array) -> bool:
    """Whether an array is a view of a memory-mapped file."""
    base: object = samples
    while base is not None and not isinstance(base, np.memmap):
        base = getattr(base, "base", None)
    return base is not None


def _features(part: Part) -> int:
    return part.samples.features if isinstance(part.samples, Csr) else part.samples.shape[1]


def _most_features(own: Iterable[int], together: Together, name: str) -> int:
    features = int(together.gather(np.array(list(own), np.int64)).max())
    if features == 0:
        raise DataError(f"{name}: its samples have no features")
    if features > MOST_GUESSED_FEATURES:
        raise DataError(f"{name}: the largest index makes {features} features; if that is meant, set data.features")
    return features


def _with_features(part: Part, features: int) -> Part:
    samples = part.samples
    return replace(part, samples=replace(samples, features=features)) if isinstance(samples, Csr) else part


def _classes(own: Array, task: Task, sources: list[AnySource], name: str, together: Together) -> Ints | None:
    """The labels that occur on any rank, ascending; None for a regression."""
    if task == "regression":
        return None
    classes = np.unique(together.gather(np.unique(own)))
    check_classes(classes, task, sources[0].label_file if len(sources) == 1 else name)
    return classes


def _labels(part: Part) -> Array:
    assert part.labels is not None
    return part.labels


def _numbered(part: Part, classes: Ints | None) -> Array:
    labels = _labels(part)
    return labels if classes is None else class_numbers(labels, classes, part.places.where_label)


def _blocks(share: Share, part: Part, labels: Array) -> dict[int, Block]:
    return {n: part.block(labels, at.start, at.stop) for n, at in zip(share.owned, share.each(), strict=True)}
