"""Every bad input is one line of DataError or ConfigError that names the file and the place, on all ranks."""

from __future__ import annotations

import gzip
import struct
import zipfile

import numpy as np
import pytest

from hpcps.data import find_bad, load_data
from hpcps.errors import ConfigError, DataError
from hpcps.together import Alone

ROWS = "".join(f"{i},{i}.5,{i % 2}\n" for i in range(20))
SVM = "".join(f"{i % 2} 1:{i} 3:2\n" for i in range(20))


def idx(shape=(20, 2), values=40, code=8, axes=None, start=b"\0\0"):
    return start + struct.pack(f">2B{len(shape)}I", code, axes or len(shape), *shape) + bytes(values)


def npy_header(text):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def replaced(text, number, line):
    lines = text.splitlines()
    lines[number - 1] = line
    return "\n".join(lines)


TEXT = {
    "letters": ("a.csv", replaced(ROWS, 7, "1,abc,0"), "line 7, column 2: 'abc' is not a number"),
    "letters under a header": (
        "a.csv",
        "age,size,label\n" + replaced(ROWS, 7, "1,abc,0"),
        r"line 8, column 2 \(size\): 'abc' is not a number",
    ),
    "label in letters": ("a.csv", replaced(ROWS, 2, "1,2,cat"), "'cat' is not a number; labels must be numbers"),
    "empty field": ("a.csv", replaced(ROWS, 3, "1,,0"), "line 3, column 2: the field is empty"),
    "underscore": ("a.csv", replaced(ROWS, 3, "1_0,1,0"), "line 3, column 1: '1_0' is not a number"),
    "ragged, short": ("a.csv", replaced(ROWS, 9, "1,0"), "line 9 has 2 columns instead of 3"),
    "ragged, long": ("a.csv", replaced(ROWS, 9, "1,2,3,0"), "line 9 has 4 columns instead of 3"),
    "ragged, trailing comma": ("a.csv", replaced(ROWS, 9, "1,2,3,"), "line 9 has 4 columns instead of 3"),
    "last line cut off": ("a.csv", ROWS + "5,5", "line 21 has 2 columns instead of 3"),
    "blank lines count": ("a.csv", "\n\n" + replaced(ROWS, 9, "\n1,0"), "line 12 has 2 columns"),
    "nan": ("a.csv", replaced(ROWS, 4, "nan,1,0"), "line 4, column 1: nan is not a finite number"),
    "too large": ("a.csv", replaced(ROWS, 4, "1e39,1,0"), r"line 4, column 1: 1e\+39 is not a finite number"),
    "open quote": ("a.csv", replaced(ROWS, 4, '"1,1,0'), "line 4, column 1: '1,1,0' is not a number"),
    "half a label": ("a.csv", replaced(ROWS, 4, "1,1,0.5"), "line 4: the label 0.5 is not a whole number"),
    "nul byte": ("a.csv", replaced(ROWS, 4, "1,\0,0"), r"line 4, column 2: '\\x00' is not a number"),
    "header only": ("a.csv", "a,b,label\n", "holds a header, but no samples"),
    "one column": ("a.csv", "1\n2\n", "one column only"),
    "empty": ("a.csv", "", "the file is empty"),
    "blank": ("a.csv", "\n \n\r\n", "only blank lines"),
    "svm letters": ("a.svm", replaced(SVM, 5, "1 1:x"), "line 5, byte 3: the value is not a number"),
    "svm label": ("a.svm", replaced(SVM, 5, "x 1:1"), "line 5, byte 1: the line does not begin with a number"),
    "svm order": ("a.svm", replaced(SVM, 5, "1 2:1 1:1"), "line 5, byte 7: indices must rise"),
    "svm cut off": ("a.svm", SVM + "1 1:1 2", "line 21, byte 7: expected INDEX:VALUE"),
    "svm comments count": ("a.svm", "# one\n\n" + replaced(SVM, 5, "1 1:x"), "line 7, byte 3"),
    "svm nan": ("a.svm", replaced(SVM, 5, "1 2:nan"), "line 5, index 2: the value is not a finite"),
    "svm huge": ("a.svm", replaced(SVM, 5, "1 2:1e39"), "line 5, index 2: the value is not a finite"),
    "svm no features": ("a.svm", "0\n1\n0\n1\n", "its samples have no features"),
    "svm index": ("a.svm", replaced(SVM, 5, "1 2000000000:1"), "2000000000 features; .*set data.features"),
    "svm empty": ("a.svm", "", "the file is empty"),
    "unknown": ("a.bin", "hello", "format not recognised; set data.format"),
    "unknown, bytes": ("a.bin", "\0\1\2\3,", "format not recognised"),
}


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("case", TEXT)
def test_bad_text(case, ranks, tmp_path, load):
    name, content, message = TEXT[case]
    (tmp_path / name).write_text(content, newline="")
    with pytest.raises(DataError, match=f"{name}.*{message}") as caught:
        load(tmp_path / name, ranks)
    assert "\n" not in str(caught.value)


BINARY = {
    "idx cut off": ("a-idx2-ubyte", idx(values=39), r"cut off: its header promises .*\(52 bytes\).*holds 51 bytes"),
    "idx too long": ("a-idx2-ubyte", idx(values=41), "1 bytes more than"),
    "idx magic": ("a-idx2-ubyte", idx(start=b"\1\0"), "not an IDX file .it starts with 01 00 08 02"),
    "idx code": ("a-idx2-ubyte", idx(code=7), "not an IDX file"),
    "idx huge": ("a-idx2-ubyte", idx(shape=(2**32 - 1, 2**32 - 1)), "the file is cut off"),
    "idx short header": ("a-idx2-ubyte", idx()[:7], "cut off inside its header"),
    "idx no samples": ("a-idx2-ubyte", idx(shape=(0, 2), values=0), "holds no samples"),
    "idx no features": ("a-idx2-ubyte", idx(shape=(20, 0), values=0), "have no features"),
    "idx empty": ("a-idx2-ubyte", b"", "the file is empty"),
    "gz cut off": ("a-idx2-ubyte.gz", gzip.compress(idx())[:-9], "damaged or cut off"),
    "gz without checksum": ("a-idx2-ubyte.gz", gzip.compress(idx())[:-4], "damaged or cut off"),
    "gz damaged": ("a-idx2-ubyte.gz", gzip.compress(idx())[:-8] + bytes(8), "damaged or cut off"),
    "gz too long": ("a-idx2-ubyte.gz", gzip.compress(idx(values=41)), "more bytes than"),
    "gz huge": ("a-idx2-ubyte.gz", gzip.compress(idx(shape=(2**31, 2**31))), "the file is cut off"),
    "gz of nothing": ("a-idx2-ubyte.gz", gzip.compress(b""), "not an IDX file"),
    "npy magic": ("a.npy", b"hello, this is not it", "not an .npy file"),
    "npy empty": ("a.npy", b"", "the file is empty"),
    "npy header cut": ("a.npy", npy_header("{'descr'")[:-2], "cut off inside its header"),
    "npy header": ("a.npy", npy_header("{'descr': __import__('os')}"), "damaged .npy header"),
    "npy shape": (
        "a.npy",
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2)}"),
        "damaged .npy header",
    ),
    "npy huge": (
        "a.npy",
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000, 4000000000)}"),
        "the file is cut off",
    ),
    "npy objects": (
        "a.npy",
        npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (2, 2)}"),
        "Python objects, which are never unpickled",
    ),
    "npy text": (
        "a.npy",
        npy_header("{'descr': '<U5', 'fortran_order': False, 'shape': (2, 2)}"),
        "values of type '<U5'",
    ),
    "npy records": (
        "a.npy",
        npy_header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}"),
        "values of type",
    ),
    "npy scalar": (
        "a.npy",
        npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': ()}") + b"1",
        "holds no samples",
    ),
    "npz empty": ("a.npz", b"", "the file is empty"),
    "npz not a zip": ("a.npz", b"hello", "damaged or cut off"),
    "csv packed": ("a.csv.gz", gzip.compress(ROWS.encode()), "unpack it first"),
    "svm packed": ("a.svm.gz", gzip.compress(SVM.encode()), "unpack it first"),
}


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("case", BINARY)
def test_bad_binary(case, ranks, tmp_path, load):
    name, content, message = BINARY[case]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "b-idx1-ubyte").write_bytes(idx(shape=(20,), values=20))
    np.save(tmp_path / "b.npy", np.zeros(20))
    labels = "b-idx1-ubyte" if "idx" in name else "b.npy" if name.endswith("npy") else ""
    given = {"labels": str(tmp_path / labels)} if labels else {}
    with pytest.raises(DataError, match=f"{name}.*{message}") as caught:
        load(tmp_path / name, ranks, **given)
    assert "\n" not in str(caught.value)


def write_members(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def test_npz_member_that_promises_too_much(tmp_path, load):
    header = npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000, 9)}")
    write_members(tmp_path / "a.npz", samples=header, labels=header)
    with pytest.raises(DataError, match=r"a\.npz \(samples\.npy\): the file is cut off"):
        load(tmp_path / "a.npz")


def test_npz_with_objects(tmp_path, load):
    np.savez(tmp_path / "a.npz", samples=np.array([{}, {}]), labels=np.zeros(2))
    with pytest.raises(DataError, match=r"a\.npz \(samples\.npy\): holds Python objects"):
        load(tmp_path / "a.npz")


def test_npz_with_other_members(tmp_path, load):
    np.savez(tmp_path / "a.npz", foo=np.zeros(2))
    with pytest.raises(DataError, match=r"a\.npz: no members called x_train and y_train or .*found: foo"):
        load(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x_train=np.zeros((2, 2)), y_train=np.arange(2), x_test=np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"b\.npz: holds x_test, but no y_test"):
        load(tmp_path / "b.npz")


def test_npz_packed_in_another_way(tmp_path, load):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("samples.npy", b"")
        archive.writestr("labels.npy", b"")
    with pytest.raises(DataError, match=r"a\.npz \(samples\.npy\): packed or encrypted .* numpy\.savez"):
        load(tmp_path / "a.npz")


def test_counts_of_samples_and_labels(tmp_path, load):
    np.savez(tmp_path / "a.npz", samples=np.zeros((5, 2)), labels=np.zeros(4))
    with pytest.raises(DataError, match=r"a\.npz holds 5 samples, but .*a\.npz 4 labels"):
        load(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", samples=np.zeros((5, 2)), labels=np.zeros((5, 3)))
    with pytest.raises(DataError, match=r"b\.npz: labels of shape \(5, 3\)"):
        load(tmp_path / "b.npz")


def test_no_label_file(tmp_path, load):
    np.save(tmp_path / "a.npy", np.zeros((5, 2)))
    with pytest.raises(DataError, match=r"a\.npy: no file with its labels found; name it in data\.labels"):
        load(tmp_path / "a.npy")
    (tmp_path / "a.idx").write_bytes(idx())
    with pytest.raises(DataError, match=r"a\.idx: no file with its labels found"):
        load(tmp_path / "a.idx")
    with pytest.raises(DataError, match=r"none\.npy: no such file"):
        load(tmp_path / "a.npy", labels=str(tmp_path / "none.npy"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_nothing_there(tmp_path, load, ranks):
    with pytest.raises(DataError, match=r"a\.csv: no such file"):
        load(tmp_path / "a.csv", ranks)
    with pytest.raises(DataError, match=r"no_such_set: no such file, and no built-in data set .*digits"):
        load("no_such_set", ranks)
    with pytest.raises(DataError, match=r"\*\.csv: no file matches"):
        load(tmp_path / "*.csv", ranks)
    with pytest.raises(DataError, match="the folder holds no data files"):
        load(tmp_path, ranks)
    with pytest.raises(DataError, match="embedded null byte"):
        load("a\0b.csv", ranks)
    with pytest.raises(ConfigError, match=r"data\.path is empty"):
        load("", ranks)


def test_a_folder_where_a_file_belongs(tmp_path, load):
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "a.npy", np.zeros((5, 2)))
    with pytest.raises(DataError, match="d: Is a directory"):
        load(tmp_path / "a.npy", labels=str(tmp_path / "d"))


def test_files_that_do_not_fit_together(tmp_path, load):
    (tmp_path / "a.csv").write_text("1,2,0\n3,4,1\n")
    (tmp_path / "b.csv").write_text("1,0\n3,1\n")
    with pytest.raises(DataError, match=r"b\.csv: 1 features, but .*a\.csv has 2"):
        load(tmp_path)
    (tmp_path / "b.csv").write_text("u,v,w\n3,4,1\n")
    (tmp_path / "a.csv").write_text("v,u,w\n3,4,1\n")
    with pytest.raises(DataError, match=r"b\.csv: its columns are called differently"):
        load(tmp_path)
    (tmp_path / "b.csv").write_text("label,v,w\n3,4,1\n")
    with pytest.raises(DataError, match=r"b\.csv: its label is in another column"):
        load(tmp_path)
    (tmp_path / "b.csv").unlink()
    np.savez(tmp_path / "b.npz", samples=np.zeros((2, 2)), labels=np.zeros(2))
    with pytest.raises(DataError, match=r"a\.csv is csv, but .*b\.npz is npz; a data set has one format"):
        load(tmp_path)
    (tmp_path / "c.svm").write_text(SVM)
    with pytest.raises(DataError, match=r"a\.csv and .*c\.svm: one is sparse"):
        load(tmp_path / "a.csv", test=str(tmp_path / "c.svm"))


def test_folder_of_training_test_and_other_files(tmp_path, load):
    for name in ("train", "test", "more"):
        (tmp_path / f"{name}.csv").write_text(ROWS)
    with pytest.raises(DataError, match=r"training and test files, and more\.csv that is neither"):
        load(tmp_path)


def test_options_that_do_not_fit(tmp_path, load):
    (tmp_path / "a.csv").write_text(ROWS)
    path = tmp_path / "a.csv"
    with pytest.raises(ConfigError, match=r"data\.test and data\.test_fraction exclude each other"):
        load(path, 2, test=str(path), test_fraction=0.1)
    with pytest.raises(ConfigError, match=r"digits has held-out samples of its own; remove data\.test_frac"):
        load("digits", 2, test_fraction=0.1)
    with pytest.raises(ConfigError, match=r"data\.labels is for idx and npy"):
        load(path, 2, labels=str(path))
    with pytest.raises(ConfigError, match=r"data\.format = 'xls' is not known"):
        load(path, 2, format="xls")
    with pytest.raises(ConfigError, match=r"data\.scale = 'log' is not known"):
        load(path, 2, scale="log")
    (tmp_path / "b.csv").write_text(ROWS)
    with pytest.raises(ConfigError, match=r"data\.labels names one file, but there are 2"):
        load(tmp_path / "*.csv", 2, labels=str(path))


def test_format_that_the_file_is_not(tmp_path, load):
    (tmp_path / "a.csv").write_text(ROWS)
    for kind, message in (("npy", "not an .npy file"), ("npz", "damaged"), ("idx", "not an IDX file")):
        with pytest.raises(DataError, match=rf"a\.csv: {message}"):
            load(tmp_path / "a.csv", format=kind)


def test_batch_larger_than_the_training_set(tmp_path, load):
    (tmp_path / "a.csv").write_text(ROWS)
    with pytest.raises(DataError, match=r"train\.batch = 17 is larger than the 16 training samples of .*a\.csv"):
        load(tmp_path / "a.csv", 2, min_train=17, test_fraction=0.2)
    assert load(tmp_path / "a.csv", 2, min_train=16, test_fraction=0.2)[0].train_count == 16


def test_libsvm_index_beyond_the_features_given(tmp_path, load, monkeypatch):
    (tmp_path / "a.svm").write_text(SVM)
    assert load(tmp_path / "a.svm", features=9)[0].features == 9
    monkeypatch.setattr("hpcps.data.load.MOST_GUESSED_FEATURES", 5)  # no limit to what is given
    assert load(tmp_path / "a.svm", 3, features=9)[0].features == 9
    with pytest.raises(DataError, match=r"a\.svm: line 1: the index 3 is beyond the 2 features expected"):
        load(tmp_path / "a.svm", 3, features=2)


def own_block(path, options, number):
    """Load block `number` of 4 alone, as if the other ranks were not there."""
    cut = lambda n: [n * i // 4 for i in range(5)]  # noqa: E731
    return load_data(
        options(str(path)),
        task="regression",
        cut=cut,
        owned=range(number, number + 1),
        cut_test=cut,
        owned_test=range(0),
        together=Alone(),
        seed=0,
    ).train[number]


@pytest.mark.parametrize(
    ("name", "text", "bad", "place"),
    [
        ("a.csv", ROWS, "1,abc,0", "line 13, column 2"),
        ("a.svm", SVM, "1 1:x", "line 13, byte 3"),
    ],
)
def test_only_the_owner_parses_a_line_and_all_ranks_hear_of_it(name, text, bad, place, tmp_path, load, options):
    (tmp_path / name).write_text(replaced(text, 13, bad))
    for number in (0, 1, 3):
        assert len(own_block(tmp_path / name, options, number)) == 5
    for ranks in (2, 4):  # run_ranks checks that every rank raises this
        with pytest.raises(DataError, match=place):
            load(tmp_path / name, ranks)


def test_only_the_last_rank_sees_a_cut_off_gz_and_all_ranks_hear_of_it(tmp_path, load, options):
    values = np.random.default_rng(0).integers(0, 256, 400_000, np.uint8)
    path = tmp_path / "a-images-idx2-ubyte.gz"
    path.write_bytes(gzip.compress(idx((20, 20_000), 0) + values.tobytes())[:-50])
    (tmp_path / "a-labels-idx1-ubyte").write_bytes(idx((20,), 20))
    assert len(own_block(path, options, 0)) == 5
    with pytest.raises(DataError, match=r"a-images-idx2-ubyte\.gz: damaged or cut off"):
        load(path, 4)


def test_the_first_failing_rank_is_the_one_reported(tmp_path, load):
    (tmp_path / "a.csv").write_text(replaced(replaced(ROWS, 18, "x,1,1"), 8, "y,1,1"))
    with pytest.raises(DataError, match="line 8, column 1: 'y'"):
        load(tmp_path / "a.csv", 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_in_binary_files(bad, tmp_path, load):
    samples = np.zeros((20, 3), np.float32)
    samples[11, 2] = bad
    np.savez_compressed(tmp_path / "a.npz", samples=samples, labels=np.arange(20) % 2)
    with pytest.raises(DataError, match=rf"a\.npz: sample 11, feature 2 is {bad}"):
        load(tmp_path / "a.npz", 3)
    np.save(tmp_path / "a.npy", samples)
    np.save(tmp_path / "a_labels.npy", np.arange(20) % 2)
    blocks = load(tmp_path / "a.npy", 3)  # mapped: not read here …
    found = [find_bad(block) for one in blocks for block in one.train.values()]
    assert found == [None, None, f"{tmp_path}/a.npy: sample 11, feature 2 is {bad}", None]
    for scale in ("standard", "maxabs"):  # … unless all of it is needed
        with pytest.raises(DataError, match=rf"a\.npy: sample 11, feature 2 is {bad}"):
            load(tmp_path / "a.npy", 3, scale=scale)


def test_values_too_large_to_scale(tmp_path, load):
    np.savez(tmp_path / "a.npz", samples=np.array([[1e300], [-1e300]]), labels=np.arange(2))
    with pytest.raises(DataError, match=r"a\.npz: sample 0: the values of feature 0 are too large to scale"):
        load(tmp_path / "a.npz", scale="standard")
