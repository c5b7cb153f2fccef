"""Samples for a finished model: stored classes and features decide."""

from __future__ import annotations

import numpy as np
import pytest

from hpcps.data import Csr, load_samples
from hpcps.errors import DataError

CLASSES = np.array([3, 7])


def read(path, options, features=2, classes=CLASSES, with_labels=True, **given):
    section = options(str(given.pop("trained_on", "train.csv")), **given)
    return load_samples(str(path), section, features=features, classes=classes, with_labels=with_labels)


def test_labels_by_the_stored_classes(tmp_path, options):
    (tmp_path / "a.csv").write_text("1,2,7\n3,4,3\n5,6,7\n")
    block = read(tmp_path / "a.csv", options)
    np.testing.assert_array_equal(block.labels, [1, 0, 1])
    np.testing.assert_array_equal(block.samples, [[1, 2], [3, 4], [5, 6]])
    assert block.where(2) == f"{tmp_path}/a.csv: line 3"
    regression = read(tmp_path / "a.csv", options, classes=None)
    np.testing.assert_array_equal(regression.labels, [7, 3, 7])


def test_unknown_label(tmp_path, options):
    (tmp_path / "a.csv").write_text("x,y,label\n1,2,7\n3,4,5\n")
    with pytest.raises(DataError, match=r"a\.csv: line 3: the label 5 does not occur .* \(3, 7\)"):
        read(tmp_path / "a.csv", options)


def test_wrong_number_of_features(tmp_path, options):
    (tmp_path / "a.csv").write_text("1,2,3,7\n")
    for with_labels in (True, False):
        with pytest.raises(DataError, match=r"a\.csv: 3 features, but the model has 2"):
            read(tmp_path / "a.csv", options, with_labels=with_labels)


def test_labels_may_be_absent(tmp_path, options):
    samples = np.array([[1, 2], [3, 4]], np.float32)
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    (tmp_path / "b.csv").write_text("1,2,99\n3,4,99\n")
    np.save(tmp_path / "c.npy", samples)
    np.savez(tmp_path / "d.npz", samples=samples)
    for name in ("a.csv", "b.csv", "c.npy", "d.npz"):
        block = read(tmp_path / name, options, with_labels=False)
        np.testing.assert_array_equal(block.samples, samples)
        np.testing.assert_array_equal(block.labels, [-1, -1])
        block = read(tmp_path / name, options, with_labels=False, classes=None)
        assert np.isnan(block.labels).all()
    for name in ("c.npy", "d.npz"):
        with pytest.raises(DataError, match=f"{name}: .*no .*labels"):
            read(tmp_path / name, options)


def test_libsvm(tmp_path, options):
    (tmp_path / "a.svm").write_text("3 1:5\n7 2:6\n")
    block = read(tmp_path / "a.svm", options, features=4)
    assert isinstance(block.samples, Csr)
    assert block.samples.features == 4
    np.testing.assert_array_equal(block.labels, [0, 1])
    with pytest.raises(DataError, match=r"a\.svm: line 2: the index 2 is beyond the 1 features expected"):
        read(tmp_path / "a.svm", options, features=1)


def test_held_out_part_is_taken(tmp_path, options):
    assert len(read("digits", options, features=64, classes=np.arange(10))) == 360
    both = {"x_train": np.zeros((5, 2)), "y_train": [3] * 5, "x_test": np.ones((2, 2)), "y_test": [7, 7]}
    np.savez(tmp_path / "a.npz", **both)
    np.testing.assert_array_equal(read(tmp_path / "a.npz", options).labels, [1, 1])


def test_label_file_belongs_to_the_path_trained_on(tmp_path, options):
    np.save(tmp_path / "one.npy", np.ones((2, 2)))
    np.save(tmp_path / "of_one.npy", [3, 7])
    np.save(tmp_path / "two.npy", np.ones((3, 2)))
    np.save(tmp_path / "two_labels.npy", [7, 7, 3])
    given = {"trained_on": tmp_path / "one.npy", "labels": str(tmp_path / "of_one.npy")}
    np.testing.assert_array_equal(read(tmp_path / "one.npy", options, **given).labels, [0, 1])
    np.testing.assert_array_equal(read(tmp_path / "two.npy", options, **given).labels, [1, 1, 0])


def test_features_that_are_not_finite(tmp_path, options):
    np.savez_compressed(tmp_path / "a.npz", samples=np.array([[1, 2], [np.nan, 4]]), labels=[3, 7])
    for with_labels in (True, False):
        with pytest.raises(DataError, match=r"a\.npz: sample 1, feature 0 is nan"):
            read(tmp_path / "a.npz", options, with_labels=with_labels)
