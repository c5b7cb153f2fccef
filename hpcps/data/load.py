"""Loading: every rank reads the blocks it owns, and all ranks agree on classes, scaling and errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from hpcps.data.blocks import Array, Block, Csr, Dataset, Ints, find_bad
from hpcps.data.labels import Task, check_classes, class_numbers, finite_labels, whole_labels
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
    bounds, test_bounds = cut(len(train_rows)), cut_test(len(test_rows)) if len(test_rows) else [0]
    owned_test = owned_test if len(test_rows) else range(0)
    train, test = agree(
        together,
        lambda: (
            _read(found.train, train_rows, bounds, owned, task),
            _read(found.test or found.train, test_rows, test_bounds, owned_test, task),
        ),
    )
    sparse, features = found.train[0].sparse, found.train[0].features
    if sparse and not features:
        features = _most_features([train, test], together, section.path)
        train, test = _with_features(train, features), _with_features(test, features)
    classes = None if task == "regression" else _classes(train, task, found.train, section.path, together)
    train_blocks = _blocks(train, _numbered(train, classes), bounds, owned)
    test_labels = agree(together, lambda: _numbered(test, classes))
    shift, scale = shift_and_scale(
        section.scale, list(train_blocks.values()), features, len(train_rows), sparse, together
    )
    return Dataset(
        name=section.path,
        features=features,
        classes=classes,
        shift=shift,
        scale=scale,
        train_count=len(train_rows),
        test_count=len(test_rows),
        train=train_blocks,
        test=_blocks(test, test_labels, test_bounds, owned_test),
        sparse=sparse,
    )


def count_ids(dataset: Dataset, together: Together) -> tuple[int, ...]:
    """For each feature of dense samples that are ids: one more than the largest of all ranks' training and held-out
    samples. A collective. Raises DataError for what is no id, on all ranks."""
    blocks = [*dataset.train.values(), *dataset.test.values()]
    own = agree(together, lambda: [_largest_ids(block) for block in blocks])
    largest = together.gather(np.array(own, np.int64).reshape(-1)).reshape(-1, dataset.features)
    return tuple(int(count) + 1 for count in largest.max(axis=0))


def count_entries(dataset: Dataset, together: Together) -> int:
    """How many entries every sample of all ranks has, held-out ones included; 0 where they differ. A collective.

    A dense sample has an entry a feature.
    """
    if not dataset.sparse:
        return dataset.features
    counts: list[Array] = [np.empty(0, np.int64)]
    for block in [*dataset.train.values(), *dataset.test.values()]:
        assert isinstance(block.samples, Csr)
        counts.append(np.unique(np.diff(block.samples.indptr)))
    found = np.unique(together.gather(np.unique(np.concatenate(counts))))
    return int(found[0]) if len(found) == 1 else 0


def _largest_ids(block: Block) -> Ints:
    samples = block.samples
    assert not isinstance(samples, Csr)
    most = MOST_FLOAT32_IDS if samples.dtype == np.float32 else MOST_IDS
    bad = (samples < 0) | (samples >= most) | (samples != np.trunc(samples))
    if bad.any():
        row, column = (int(n) for n in np.argwhere(bad)[0])
        remedy = f"ids are whole numbers from 0 to {most - 1}"
        raise DataError(f"{block.where(row)}, feature {column} is {samples[row, column]}; {remedy}")
    largest: Ints = samples.max(axis=0, initial=-1).astype(np.int64)
    return largest


def load_samples(path: str, options: DataOptions, *, features: int, classes: Ints | None, with_labels: bool) -> Block:
    """Load all samples of a file, folder, glob or built-in name for a trained model, in one process.

    Where the data set has held-out samples of its own, these are taken. Labels (m,) are class numbers by
    the stored ``classes``, or float64 where these are None; without ``with_labels`` they are not looked at:
    -1, or NaN. ``options.labels`` counts only where ``path`` is ``options.path``. Raises DataError, also
    where the number of features is not the model's or a label is not one of the classes.
    """
    label_file = options.labels if path == options.path else ""
    sources = open_held_out(path, Opening(options, label_file, with_labels, features))
    check_agreement(sources)
    if sources[0].features != features:
        raise DataError(f"{path}: {sources[0].features} features, but the model has {features}")
    count = sum(source.count for source in sources)
    part = read_part(sources, range(count))
    if not with_labels:
        _check_features(part)
        unknown = np.full(count, -1, np.int64) if classes is not None else np.full(count, np.nan)
        return part.block(unknown, 0, count)
    task: Task = "regression" if classes is None else "multiclass"
    part = _checked(part, task)
    labels = _numbered(part, classes)
    return part.block(labels, 0, len(labels))


def _rows(train: list[AnySource], test: list[AnySource], section: DataOptions, seed: int) -> tuple[Rows, Rows]:
    count = sum(source.count for source in train)
    if test:
        return range(count), range(sum(source.count for source in test))
    return split_rows(count, section.test_fraction, seed, section.path)


def _read(sources: list[AnySource], rows: Rows, bounds: Sequence[int], owned: range, task: Task) -> Part:
    own = rows[bounds[owned.start] : bounds[owned.stop]] if len(owned) else rows[:0]
    return _checked(read_part(sources, own), task)


def _checked(part: Part, task: Task) -> Part:
    """The part with whole (classifier) or finite (regression) labels; raises DataError."""
    assert part.labels is not None
    check = finite_labels if task == "regression" else whole_labels
    part = replace(part, labels=check(part.labels, part.places.where_label))
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


def _most_features(parts: list[Part], together: Together, name: str) -> int:
    own = [part.samples.features for part in parts if isinstance(part.samples, Csr)]
    features = int(together.gather(np.array(own, np.int64)).max())
    if features == 0:
        raise DataError(f"{name}: its samples have no features")
    if features > MOST_GUESSED_FEATURES:
        raise DataError(f"{name}: the largest index makes {features} features; if that is meant, set data.features")
    return features


def _with_features(part: Part, features: int) -> Part:
    assert isinstance(part.samples, Csr)
    return replace(part, samples=replace(part.samples, features=features))


def _classes(part: Part, task: Task, sources: list[AnySource], name: str, together: Together) -> Ints:
    assert part.labels is not None
    classes = np.unique(together.gather(np.unique(part.labels)))
    check_classes(classes, task, sources[0].label_file if len(sources) == 1 else name)
    return classes


def _numbered(part: Part, classes: Ints | None) -> Array:
    assert part.labels is not None
    return part.labels if classes is None else class_numbers(part.labels, classes, part.places.where_label)


def _blocks(part: Part, labels: Array, bounds: Sequence[int], owned: range) -> dict[int, Block]:
    if not len(owned):
        return {}
    start = bounds[owned.start]
    return {n: part.block(labels, bounds[n] - start, bounds[n + 1] - start) for n in owned}
