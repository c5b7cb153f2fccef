"""Every format gives back the arrays that were written, on any number of ranks."""

from __future__ import annotations

import gzip
import subprocess
import sys

import numpy as np
import pytest

from hpcps.data import Csr
from hpcps.data.load import is_mapped

KINDS = ["idx", "idx.gz", "npy", "npz", "npz packed", "csv", "tsv", "libsvm"]
RANKS = [1, 2, 3, 5]


@pytest.fixture
def arrays():
    rng = np.random.default_rng(5)
    samples = np.round(rng.normal(size=(47, 6)), 3).astype(np.float32)
    samples[rng.random(samples.shape) < 0.2] = 0
    samples[0, -1] = 1  # so that sparse files show all features
    return samples, rng.permutation(np.arange(47) % 3)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, ranks, arrays, tmp_path, write, load, joined):
    samples, labels = arrays
    sets = load(write(kind, tmp_path, samples, labels), ranks)
    got, classes = joined(sets)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, samples)
    np.testing.assert_array_equal(classes, labels)
    for one in sets:
        assert (one.features, one.train_count, one.test_count) == (6, 47, 0)
        np.testing.assert_array_equal(one.classes, [0, 1, 2])
    assert sorted(number for one in sets for number in one.train) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_do_not_depend_on_the_rank_count(kind, arrays, tmp_path, write, load):
    """Same blocks, same classes, same bits of shift and scale, with a random part held out."""
    path = write(kind, tmp_path, *arrays)
    [alone] = load(path, 1, scale="standard", test_fraction=0.3, seed=7)
    assert (alone.train_count, alone.test_count) == (33, 14)
    for ranks in RANKS[1:]:
        for one in load(path, ranks, scale="standard", test_fraction=0.3, seed=7):
            assert one.shift.tobytes() == alone.shift.tobytes()
            assert one.scale.tobytes() == alone.scale.tobytes()
            for mine, whole in ((one.train, alone.train), (one.test, alone.test)):
                for number, block in mine.items():
                    assert_same_block(block, whole[number])


def assert_same_block(block, other):
    if isinstance(block.samples, Csr):
        for name in ("indptr", "indices", "values"):
            np.testing.assert_array_equal(getattr(block.samples, name), getattr(other.samples, name))
        assert block.samples.features == other.samples.features
    else:
        assert block.samples.flags.c_contiguous
        np.testing.assert_array_equal(block.samples, other.samples)
    np.testing.assert_array_equal(block.labels, other.labels)
    assert [block.where(i) for i in range(len(block))] == [other.where(i) for i in range(len(other))]


@pytest.mark.parametrize("kind", KINDS)
def test_where_names_the_place(kind, arrays, tmp_path, write, load):
    samples, labels = arrays
    path = write(kind, tmp_path, samples, labels)
    [one] = load(path)
    first = {"csv": "line 12", "tsv": "line 12", "libsvm": "line 12"}.get(kind, "sample 11")
    assert one.train[1].where(0) == f"{path}: {first}"


@pytest.mark.parametrize("dtype", ["u1", "i1", ">i2", ">i4", ">f4", ">f8"])
@pytest.mark.parametrize("kind", ["idx", "idx.gz"])
def test_idx_dtypes(kind, dtype, tmp_path, write, load, joined):
    samples = (np.arange(40) - (0 if dtype == "u1" else 20)).reshape(10, 4).astype(dtype)
    sets = load(write(kind, tmp_path, samples, np.arange(10) % 2), 2)
    got, _ = joined(sets)
    assert got.dtype == samples.dtype.newbyteorder("=")
    np.testing.assert_array_equal(got, samples)


@pytest.mark.parametrize(
    ("stored", "kept"),
    [(d, d) for d in ("u1", "i1", "i2", "i4", "i8", "f4", "f8")]
    + [(d, "f4") for d in ("?", "u2", "u4", "u8", "f2", "g")]
    + [(">i4", "i4"), (">f8", "f8")],
)
@pytest.mark.parametrize("kind", ["npy", "npz", "npz packed"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_dtypes_and_orders(kind, stored, kept, order, tmp_path, write, load, joined):
    samples = np.asarray(np.arange(120).reshape(20, 3, 2) % 7, np.dtype(stored), order=order)
    got, _ = joined(load(write(kind, tmp_path, samples, np.arange(20) % 2), 3))
    assert got.dtype == np.dtype(kept)
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, samples.reshape(20, 6))


@pytest.mark.parametrize("kind", ["idx", "npy", "npz"])
def test_plain_bytes_are_mapped_and_writing_leaves_the_file_alone(kind, tmp_path, write, load):
    samples = np.arange(80, dtype=np.uint8).reshape(20, 4)
    path = write(kind, tmp_path, samples, np.arange(20) % 2)
    [one] = load(path)
    assert all(is_mapped(block.samples) for block in one.train.values())
    one.train[0].samples[:] = 255
    [again] = load(path)
    np.testing.assert_array_equal(again.train[0].samples, samples[:5])


def test_packed_arrays_are_not_mapped(tmp_path, write, load):
    samples = np.arange(80, dtype=np.uint8).reshape(20, 4)
    [one] = load(write("idx.gz", tmp_path, samples, np.arange(20) % 2))
    assert not is_mapped(one.train[0].samples)


@pytest.mark.parametrize("kind", ["csv", "libsvm", "npz"])
@pytest.mark.parametrize("by", ["folder", "glob"])
def test_several_files_are_one_set(kind, by, arrays, tmp_path, write, load, joined):
    samples, labels = arrays
    samples[[0, 20, 40], -1] = 1
    for name, low, high in (("a", 0, 20), ("b", 20, 21), ("c", 21, 47)):
        path = write(kind, tmp_path, samples[low:high], labels[low:high])
        path.rename(tmp_path / f"{name}{path.suffix}")
    path = tmp_path if by == "folder" else tmp_path / f"[a-c].{kind}"
    for ranks in (1, 3):
        sets = load(path, ranks)
        got, classes = joined(sets)
        np.testing.assert_array_equal(got, samples)
        np.testing.assert_array_equal(classes, labels)
    # block 1 is samples 11..22: nine of a, the one of b, and c's
    block = load(path)[0].train[1]
    noun, first = ("sample", 0) if kind == "npz" else ("line", 1)
    assert block.where(9) == f"{tmp_path / 'b'}.{kind}: {noun} {first}"
    assert block.where(10) == f"{tmp_path / 'c'}.{kind}: {noun} {first}"


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("X_train", "y_train", "X_test", "y_test"),
        ("samples", "labels", "test_samples", "test_labels"),
        ("x", "y", "x_test", "y_test"),
    ],
)
def test_npz_with_its_own_split(names, arrays, tmp_path, load, joined):
    samples, labels = arrays
    parts = (samples[:30], labels[:30], samples[30:], labels[30:])
    np.savez(tmp_path / "set.npz", **dict(zip(names, parts, strict=True)))
    sets = load(tmp_path / "set.npz", 2)
    assert (sets[0].train_count, sets[0].test_count) == (30, 17)
    np.testing.assert_array_equal(joined(sets, "train")[0], samples[:30])
    np.testing.assert_array_equal(joined(sets, "test")[0], samples[30:])
    np.testing.assert_array_equal(joined(sets, "test")[1], labels[30:])


@pytest.mark.parametrize("test_name", ["t10k", "test"])
def test_idx_folder_with_its_own_split(test_name, arrays, tmp_path, write, load, joined):
    samples, labels = arrays
    for name, part in (("train", slice(30)), (test_name, slice(30, None))):
        images = write("idx.gz", tmp_path, samples[part], labels[part])
        images.rename(tmp_path / f"{name}-images-idx3-ubyte.gz")
        (tmp_path / "some-labels-idx1-ubyte.gz").rename(tmp_path / f"{name}-labels-idx1-ubyte.gz")
    sets = load(tmp_path, 2)
    np.testing.assert_array_equal(joined(sets, "train")[0], samples[:30])
    np.testing.assert_array_equal(joined(sets, "test")[1], labels[30:])


def test_npy_folder_with_its_own_split(arrays, tmp_path, load, joined):
    samples, labels = arrays
    for name, part in (("train", slice(30)), ("test", slice(30, None))):
        np.save(tmp_path / f"x_{name}.npy", samples[part])
        np.save(tmp_path / f"y_{name}.npy", labels[part])
    sets = load(tmp_path)
    np.testing.assert_array_equal(joined(sets, "train")[0], samples[:30])
    np.testing.assert_array_equal(joined(sets, "test")[0], samples[30:])


def test_a_file_that_is_there_packed_and_unpacked_counts_once(arrays, tmp_path, write, load):
    for kind in ("idx", "idx.gz"):
        write(kind, tmp_path, *arrays)
    assert load(tmp_path)[0].train_count == 47


def test_given_test_wins_over_the_split_inside(arrays, tmp_path, write, load, joined):
    samples, labels = arrays
    np.savez(tmp_path / "a.npz", x_train=samples, y_train=labels, x_test=samples, y_test=labels)
    other = write("csv", tmp_path, samples[:9], labels[:9])
    sets = load(tmp_path / "a.npz", 3, test=str(other))
    assert sets[0].test_count == 9
    np.testing.assert_array_equal(joined(sets, "test")[0], samples[:9])


def test_held_out_part_of_the_test_path_is_taken(arrays, tmp_path, write, load):
    samples, labels = arrays
    np.savez(tmp_path / "b.npz", x_train=samples, y_train=labels, x_test=samples[:5], y_test=labels[:5])
    assert load(write("csv", tmp_path, samples, labels), test=str(tmp_path / "b.npz"))[0].test_count == 5


def test_label_file_given_by_name(arrays, tmp_path, load, joined):
    samples, labels = arrays
    np.save(tmp_path / "one.npy", samples)
    np.save(tmp_path / "other.npy", labels[:, None])
    sets = load(tmp_path / "one.npy", 2, labels=str(tmp_path / "other.npy"))
    np.testing.assert_array_equal(joined(sets)[1], labels)


@pytest.mark.parametrize(("kind", "name"), [("npy", "x.bin"), ("npz", "x.bin"), ("csv", "x.data"), ("libsvm", "x")])
def test_content_tells_the_format_where_the_name_does_not(kind, name, arrays, tmp_path, write, load, joined):
    samples, labels = arrays
    (tmp_path / "there").mkdir()
    path = write(kind, tmp_path, samples, labels)
    path = path.rename(tmp_path / "there" / name)
    given = {"labels": str(tmp_path / "some_labels.npy")} if kind == "npy" else {}
    np.testing.assert_array_equal(joined(load(path, **given))[0], samples)


def test_more_blocks_than_samples(tmp_path, write, load):
    samples = np.arange(6, dtype=np.float32).reshape(3, 2)
    for kind in ("csv", "npz", "libsvm"):
        sets = load(write(kind, tmp_path, samples, np.arange(3)), 5, blocks=7, scale="standard")
        assert [len(block) for one in sets for block in one.train.values()] == [0, 0, 1, 0, 1, 0, 1]


def test_gz_of_several_members(arrays, tmp_path, write, load, joined):
    samples, labels = arrays
    path = write("idx", tmp_path, samples, labels)
    content = path.read_bytes()
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(content[:100]) + gzip.compress(content[100:]))
    path.unlink()
    np.testing.assert_array_equal(joined(load(packed, 3))[0], samples)


def test_importing_brings_no_compiler_and_no_mpi():
    code = "import sys, hpcps.data; print([m for m in ('numba', 'mpi4py', 'cupy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
