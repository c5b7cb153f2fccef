"""Files made to mislead: headers that promise anything, text of the right words in the wrong places. Whatever a reader
is given, it gives samples or a DataError of one line, and takes little memory for little files."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from hpcps.errors import ConfigError, DataError

MOST_BYTES = 32 << 20
"""Of memory, for files of less than 2 KiB; readers work with blocks of some MiB"""

SIZES = st.one_of(
    st.integers(0, 30),
    st.sampled_from([2**16, 2**31 - 1, 2**31, 2**32 - 1]),
    st.sampled_from([2**33, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**30]),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def attempt(load, joined):
    """Load a file in every way that is asked for: samples or a DataError of one line each time."""
    tracemalloc.start()

    def load_it(path: Path, **options):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        message = None
        try:
            samples, labels = joined(load(path, 1, blocks=2, task="regression", **options))
            assert len(samples) == len(labels)
        except (DataError, ConfigError) as error:
            message = str(error)
        assert message is None or ("\n" not in message and str(path.parent) in message)
        assert tracemalloc.get_traced_memory()[1] - before < MOST_BYTES
        return "read" if message is None else "refused"

    yield load_it
    tracemalloc.stop()


@settings(max_examples=80, deadline=None)
@given(
    code=st.sampled_from([0x08, 0x0B, 0x0D, 0x0E, 0x07, 0xFF]),
    sizes=st.lists(SIZES, min_size=1, max_size=5),
    axes=st.one_of(st.none(), st.integers(0, 255)),
    body=st.binary(max_size=400),
    packed=st.booleans(),
    labels=st.integers(0, 30),
)
def test_idx_headers(folder, attempt, code, sizes, axes, body, packed, labels):
    sizes = [size % 2**32 for size in sizes]
    content = bytes([0, 0, code, len(sizes) if axes is None else axes]) + struct.pack(f">{len(sizes)}I", *sizes) + body
    end = ".gz" if packed else ""
    for name in ("f-images-idx3-ubyte", "f-images-idx3-ubyte.gz"):
        (folder / name).unlink(missing_ok=True)
    path = folder / f"f-images-idx3-ubyte{end}"
    path.write_bytes(gzip.compress(content) if packed else content)
    (folder / "f-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", labels) + bytes(labels))
    event(attempt(path, labels=str(folder / "f-labels-idx1-ubyte")))


DESCRS = st.sampled_from(
    [
        "<f4",
        ">f8",
        "|u1",
        "|O",
        "<U9999999",
        "|V99999999",
        "<M8[s]",
        "f",
        "<f16",
        "|b1",
        "<c16",
        "[('a', '<f4')]",
        "<f99",
        "",
    ]
)
HEADERS = st.one_of(
    st.text("{}()[]'\":,- \\\n0123456789LTFdescrhapfotn_\0", max_size=120),
    st.builds(
        "{{'descr': {!r}, 'fortran_order': {}, 'shape': {}, }}".format,
        DESCRS,
        st.sampled_from(["True", "False", "0", "None", "'x'", "[[[[[[]]]]]]"]),
        st.one_of(
            st.lists(SIZES, max_size=4).map(lambda sizes: f"({', '.join(map(str, sizes))},)"),
            st.sampled_from(["()", "(-1,)", "(1.5,)", "(True, 2)", "3", "(" * 80, "((2,),)", "(9" + "9" * 5000 + ",)"]),
        ),
    ),
)
BODIES = st.one_of(st.binary(max_size=200), st.integers(0, 20).map(lambda n: np.arange(n, dtype=np.float32).tobytes()))


def npy(header: str, body: bytes, version: int = 1, size: int | None = None) -> bytes:
    text = header.encode("latin-1", "replace") + b"\n"
    form = "<H" if version == 1 else "<I"
    length = (len(text) if size is None else size) % (1 << 8 * struct.calcsize(form))
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(form, length) + text + body


@settings(max_examples=80, deadline=None)
@given(header=HEADERS, body=BODIES, version=st.sampled_from([1, 1, 1, 2, 3, 9]), size=st.one_of(st.none(), SIZES))
def test_npy_headers(folder, attempt, header, body, version, size):
    path = folder / "x.npy"
    path.write_bytes(npy(header, body, version, size))
    np.save(folder / "y.npy", np.zeros(5))
    event(attempt(path, labels=str(folder / "y.npy")))
    event(attempt(folder / "y.npy", labels=str(path)))


@settings(max_examples=80, deadline=None)
@given(
    header=HEADERS,
    body=BODIES,
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]),
    fields=st.lists(st.tuples(st.sampled_from(["local", "central"]), st.integers(0, 45), SIZES), max_size=3),
)
def test_npz_members(folder, attempt, header, body, method, fields):
    """The numbers in a zip's own headers are written over: sizes, offsets, methods, flags."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as archive:
        archive.writestr("samples.npy", npy(header, body))
        labels = io.BytesIO()
        np.save(labels, np.zeros(5))
        archive.writestr("labels.npy", labels.getvalue())
    content = bytearray(held.getvalue())
    for which, offset, value in fields:
        place = content.find(b"PK\3\4" if which == "local" else b"PK\1\2") + offset
        content[place : place + 4] = struct.pack("<I", value % 2**32)
    path = folder / "x.npz"
    path.write_bytes(content)
    event(attempt(path))


def test_a_small_file_that_unpacks_to_much_is_not_unpacked_whole(folder, attempt):
    """A header that promises little, and ten MiB of zeros behind it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = b"\0\0\x08\x02" + struct.pack(">2I", 5, 2)
    path = folder / "b-images-idx2-ubyte.gz"
    path.write_bytes(packer.compress(head + bytes(10 << 20)) + packer.flush())
    (folder / "b-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", 5) + bytes(5))
    assert attempt(path, labels=str(folder / "b-labels-idx1-ubyte")) == "refused"


GOOD = st.integers(0, 9).map(str)
NUMBERS = st.one_of(
    GOOD,
    GOOD,
    GOOD,
    st.sampled_from(
        ["1", "-1", "0.5", "1e5", "1e400", "-1e400", "1e-400", "nan", "inf", "+", "-", ".", "e", "1e", "0x1p3"]
    ),
    st.sampled_from(
        ["9" * 30, "0" * 300 + "1", "1" + "0" * 400, "1_0", "１", "1,5", "1;2", "'1'", '"1"', "\0", "\ufeff1"]
    ),
    st.integers(-(2**70), 2**70).map(str),
)
SEPARATORS = st.sampled_from([",", ", ", "\t", ";", " ", ""])
ENDS = st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\n\n", "\n \n", ""])
ENTRIES = st.builds(
    "{}{}{}".format,
    st.one_of(GOOD, GOOD, NUMBERS),
    st.sampled_from([":", ":", ":", ":", "::", " :", ": ", ""]),
    NUMBERS,
)


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(st.tuples(st.lists(NUMBERS, max_size=5), SEPARATORS, ENDS), max_size=8),
    window=st.sampled_from([0, 1, 1024]),
    hash_bits=st.sampled_from([0, 0, 8]),
    label=st.sampled_from(["auto", "0", "-1", "7", "-99999999999999999999", "no such"]),
)
def test_csv_text(folder, attempt, lines, window, hash_bits, label):
    path = folder / "x.csv"
    path.write_bytes("".join(mark.join(fields) + end for fields, mark, end in lines).encode())
    event(attempt(path, window=window, hash_bits=hash_bits, label_column=label))


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(
        st.tuples(NUMBERS, st.lists(ENTRIES, max_size=4), st.sampled_from(["", " ", " # x", "#"]), ENDS), max_size=8
    ),
    window=st.sampled_from([0, 1, 1024]),
    features=st.sampled_from([0, 1, 30]),
    zero_based=st.booleans(),
)
def test_libsvm_text(folder, attempt, lines, window, features, zero_based):
    path = folder / "x.svm"
    path.write_bytes("".join(" ".join([label, *entries]) + more + end for label, entries, more, end in lines).encode())
    event(attempt(path, window=window, features=features, zero_based=zero_based))


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=300), form=st.sampled_from(["idx", "npz", "npy", "csv", "libsvm", "auto"]))
def test_any_bytes_as_any_format(folder, attempt, content, form):
    (folder / "any").write_bytes(content)
    np.save(folder / "y.npy", np.zeros(5))
    event(attempt(folder / "any", format=form, labels=str(folder / "y.npy") if form == "npy" else ""))
