"""The handwritten digits against the copy of another package."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest


def test_digits_are_the_published_ones(load, joined):
    datasets = pytest.importorskip("sklearn.datasets")
    published, targets = datasets.load_digits(return_X_y=True)
    sets = load("digits")
    (train, train_labels), (test, test_labels) = joined(sets, "train"), joined(sets, "test")
    assert (train.shape, test.shape, train.dtype) == ((1437, 64), (360, 64), np.uint8)
    ours = np.column_stack([np.concatenate([train, test]), np.concatenate([train_labels, test_labels])])
    theirs = np.column_stack([published, targets]).astype(np.int64)
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_digits_split_is_stratified(load, joined):
    sets = load("digits")
    parts = [np.bincount(joined(sets, part)[1]) for part in ("train", "test")]
    assert abs(parts[1] / (parts[0] + parts[1]) - 0.2).max() < 0.01


def test_digits_over_ranks(load, joined):
    alone, three = load("digits"), load("digits", 3)
    for part in ("train", "test"):
        for mine, whole in zip(joined(three, part), joined(alone, part), strict=True):
            np.testing.assert_array_equal(mine, whole)
    assert three[0].train[0].where(3) == "digits: sample 3"


def test_source_and_licence_are_named():
    text = resources.files("hpcps.data").joinpath("digits.txt").read_text(encoding="utf-8")
    for words in ("Alpaydin", "Kaynak", "UCI", "CC BY 4.0", "10.24432/C50P49"):
        assert words in text
