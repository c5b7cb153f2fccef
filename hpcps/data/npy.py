"""NumPy's files: .npy, and .npz with samples and labels (and held-out ones). Nothing is unpickled."""

from __future__ import annotations

import ast
import os
import re
import struct
import zipfile
from typing import IO

import numpy as np

from hpcps.data.files import PARSING, reading
from hpcps.data.stored import ArraySource, StoredArray, most_unpacked, pair
from hpcps.errors import DataError

MAGIC = b"\x93NUMPY"
MOST_HEADER_BYTES = 1 << 16
NAMES = (  # of the members in an .npz: samples, labels, held-out samples, held-out labels
    ("x_train", "y_train", "x_test", "y_test"),
    ("X_train", "y_train", "X_test", "y_test"),
    ("samples", "labels", "test_samples", "test_labels"),
    ("x", "y", "x_test", "y_test"),
    ("X", "y", "X_test", "y_test"),
)


def open_npy(path: str, labels: str = "", labelled: bool = True) -> ArraySource:
    """Survey an .npy file of samples and the file of its labels, given or found by name; raises DataError."""
    samples = stored_npy(path)
    labels = labels or label_name(path)
    if not labels and labelled:
        raise DataError(f"{path}: no file with its labels found; name it in data.labels")
    return pair(samples, stored_npy(labels) if labels else None)


def stored_npy(path: str) -> StoredArray:
    """Read the header of an .npy file and check that its size fits; raises DataError."""
    with reading(path), open(path, "rb") as file:
        dtype, shape, fortran = read_header(path, file)
        array = StoredArray(path, dtype, shape, file.tell(), fortran=fortran)
        array.check_size(os.path.getsize(path))
    return array


def read_header(name: str, file: IO[bytes]) -> tuple[str, tuple[int, ...], bool]:
    """Dtype, shape, Fortran order of an .npy file, which then stands at the values; raises DataError."""
    start = file.read(8)
    if not start:
        raise DataError(f"{name}: the file is empty")
    if start[:6] != MAGIC:
        raise DataError(f"{name}: not an .npy file (it starts with {start[:6].hex(' ')})")
    width = 2 if start[6:7] == b"\x01" else 4
    length = file.read(width)
    size = int.from_bytes(length, "little")
    header = file.read(min(size, MOST_HEADER_BYTES))
    if len(length) < width or len(header) < size:
        raise DataError(f"{name}: the file is cut off inside its header")
    return parse_header(name, header)


def parse_header(name: str, header: bytes) -> tuple[str, tuple[int, ...], bool]:
    """Dtype, shape and Fortran order from the text of an .npy header; raises DataError."""
    try:
        if b"\\" in header:
            raise ValueError("a backslash")
        with PARSING:
            fields = ast.literal_eval(header.decode("latin-1").strip())
        descr, shape, fortran = fields["descr"], fields["shape"], fields["fortran_order"]
        if type(shape) is not tuple or any(type(n) is not int or not 0 <= n < 1 << 62 for n in shape):
            raise ValueError("its shape")
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise DataError(f"{name}: damaged .npy header ({error})") from error
    if isinstance(descr, str) and "O" in descr:
        raise DataError(f"{name}: holds Python objects, which are never unpickled; save it as an array of numbers")
    if not isinstance(descr, str) or not re.fullmatch(r"\|b1|[<>|=]?([iu](1|2|4|8)|f(2|4|8|16))", descr):
        raise DataError(f"{name}: holds values of type {descr!r}; expected integers or floating-point numbers")
    return np.dtype(descr).str, shape, bool(fortran) and len(shape) > 1


def label_name(path: str) -> str:
    """The existing .npy file with the labels of another (x_train -> y_train, samples -> labels, …), or ""."""
    folder, name = os.path.split(path)
    stem = name.removesuffix(".npy")
    candidates = [re.sub(r"samples|images|features|data|inputs", "labels", stem)]
    candidates += [re.sub(r"(^|[_-])[xX]($|[_-])", rf"\g<1>{letter}\2", stem) for letter in "yY"]
    candidates += [stem + "_labels", stem + "-labels", stem + ".labels"]
    for candidate in candidates:
        found = os.path.join(folder, candidate + ".npy")
        if candidate != stem and os.path.isfile(found):
            return found
    return ""


def open_npz(path: str, labelled: bool = True) -> tuple[ArraySource, ArraySource | None]:
    """Survey an .npz: its samples, and its held-out samples where it has them; raises DataError."""
    with reading(path), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

        def source(samples: str, labels: str) -> ArraySource | None:
            if samples not in members:
                return None
            if labels not in members and labelled:
                raise DataError(f"{path}: holds {samples}, but no {labels}")
            stored = _stored_member(path, archive, members[samples])
            label = _stored_member(path, archive, members[labels]) if labels in members else None
            return pair(stored, label)

        for names in NAMES:
            train = source(*names[:2])
            if train is not None:
                return train, source(*names[2:])
        for names in NAMES:
            held_out = source(*names[2:])
            if held_out is not None:
                return held_out, None
    found = ", ".join(sorted(members)) or "none"
    known = " or ".join(f"{samples} and {labels}" for samples, labels, _, _ in NAMES[:3])
    raise DataError(f"{path}: no members called {known} (found: {found})")


def _stored_member(path: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> StoredArray:
    name = f"{path} ({info.filename})"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise DataError(f"{name}: packed or encrypted in a way that is not read; write it with numpy.savez")
    with archive.open(info) as file:
        dtype, shape, fortran = read_header(name, file)
        offset = file.tell()
    if info.compress_type == zipfile.ZIP_DEFLATED:
        array = StoredArray(path, dtype, shape, offset, "zip", info.filename, fortran)
        array.check_size(info.file_size)
        array.check_size(most_unpacked(info.compress_size), exact=False)
        return array
    StoredArray(path, dtype, shape, offset, member=info.filename).check_size(info.file_size)
    start = _data_start(path, info)
    array = StoredArray(path, dtype, shape, start + offset, "", info.filename, fortran)
    array.check_size(os.path.getsize(path), exact=False)
    return array


def _data_start(path: str, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin: after its local header, whose length stands in the header itself."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile("a member's header is missing")
    name, extra = struct.unpack("<HH", header[26:30])
    return info.header_offset + 30 + int(name) + int(extra)
