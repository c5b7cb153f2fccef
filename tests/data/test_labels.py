"""Labels of any whole numbers become class numbers that all ranks agree on."""

from __future__ import annotations

import numpy as np
import pytest

from hpcps.errors import DataError


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("kind", ["csv", "npy", "libsvm"])
@pytest.mark.parametrize("values", [(-1, 1), (3, 7), (0, 1), (1.0, 2.0), (-1.0, 1.0), (2**40, -(2**40))], ids=str)
def test_binary_labels(values, kind, ranks, tmp_path, write, load, joined):
    labels = np.array(values)[np.arange(20) // 3 % 2]  # the ranks see different first labels
    samples = np.ones((20, 2), np.float32)
    if kind == "csv":
        (tmp_path / "a.csv").write_text("".join(f"1,1,{label}\n" for label in labels))
        path = tmp_path / "a.csv"
    elif kind == "libsvm":
        (tmp_path / "a.svm").write_text("".join(f"{label} 1:1 2:1\n" for label in labels))
        path = tmp_path / "a.svm"
    else:
        path = write(kind, tmp_path, samples, labels)
    sets = load(path, ranks, task="binary")
    classes = np.sort(np.array(values, np.int64))
    for one in sets:
        assert one.classes.dtype == np.int64
        np.testing.assert_array_equal(one.classes, classes)
    numbers = joined(sets)[1]
    assert numbers.dtype == np.int64
    np.testing.assert_array_equal(classes[numbers], labels)


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "u8", "f2", "f8", "g", ">i4"])
def test_label_dtypes(dtype, tmp_path, write, load, joined):
    labels = (np.arange(20) % 2).astype(dtype)
    np.testing.assert_array_equal(joined(load(write("npz", tmp_path, np.ones((20, 2)), labels)))[1], np.arange(20) % 2)


def test_classes_that_only_one_rank_has(tmp_path, write, load, joined):
    labels = np.repeat([40, 10, 30, 20], 5)
    sets = load(write("npz", tmp_path, np.ones((20, 2)), labels), 4)
    for one in sets:
        np.testing.assert_array_equal(one.classes, [10, 20, 30, 40])
    np.testing.assert_array_equal(joined(sets)[1], np.repeat([3, 0, 2, 1], 5))


@pytest.mark.parametrize("ranks", [1, 3])
def test_numbers_of_classes(ranks, tmp_path, write, load):
    def path(labels):
        return write("npy", tmp_path, np.ones((len(labels), 2)), np.array(labels))

    message = r"some_labels\.npy: 3 classes \(0, 1, 2\) do not fit a binary model; use softmax"
    with pytest.raises(DataError, match=message):
        load(path([2, 1, 0, 1]), ranks, task="binary")
    with pytest.raises(DataError, match=r"some_labels\.npy: 9 classes \(0, 1, 2, 3, 4, 5, …\)"):
        load(path(list(range(9))), ranks, task="binary")
    for task in ("binary", "multiclass"):
        with pytest.raises(DataError, match=r"some_labels\.npy: every label is 7; .* at least 2 classes"):
            load(path([7, 7, 7, 7]), ranks, task=task)


@pytest.mark.parametrize("bad", [0.5, np.nan, np.inf, 1e19])
def test_labels_that_are_not_whole(bad, tmp_path, write, load):
    labels = np.arange(20) % 2 + 0.0
    labels[13] = bad
    path = write("npy", tmp_path, np.ones((20, 2)), labels)
    with pytest.raises(DataError, match=r"some_labels\.npy: sample 13: the label .* is not a whole number"):
        load(path, 3)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_regression_labels(bad, tmp_path, write, load, joined):
    labels = np.linspace(-1, 1, 20)
    sets = load(write("npy", tmp_path, np.ones((20, 2)), labels), 3, task="regression")
    assert all(one.classes is None for one in sets)
    np.testing.assert_array_equal(joined(sets)[1], labels)
    labels[13] = bad
    path = write("npy", tmp_path, np.ones((20, 2)), labels)
    with pytest.raises(DataError, match=rf"some_labels\.npy: sample 13: the label is {bad}"):
        load(path, 3, task="regression")


def test_integers_as_regression_labels(tmp_path, write, load, joined):
    labels = joined(load(write("csv", tmp_path, np.ones((20, 2)), np.arange(20)), task="regression"))[1]
    assert labels.dtype == np.float64
    np.testing.assert_array_equal(labels, np.arange(20))


@pytest.mark.parametrize("ranks", [1, 3])
def test_held_out_label_that_training_lacks(ranks, tmp_path, load):
    (tmp_path / "a.csv").write_text("1,0\n2,1\n3,0\n4,1\n")
    (tmp_path / "b.csv").write_text("1,0\n2,1\n3,0\n4,5\n")
    with pytest.raises(DataError, match=r"b\.csv: line 4: the label 5 does not occur among .*\(0, 1\)"):
        load(tmp_path / "a.csv", ranks, test=str(tmp_path / "b.csv"))
