"""Opening: from the options of ``[data]`` to surveyed files, which know their sizes but are not read yet."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np

from hpcps.data.blocks import Array
from hpcps.data.builtin import SHAPES, BuiltinSource
from hpcps.data.csv import CsvSource, open_csv
from hpcps.data.files import is_gzip, is_idx_name, matching, unpacked_start_of
from hpcps.data.idx import is_idx, open_idx
from hpcps.data.idx import label_name as idx_label_name
from hpcps.data.libsvm import LibsvmSource, open_libsvm
from hpcps.data.npy import MAGIC, open_npy, open_npz
from hpcps.data.npy import label_name as npy_label_name
from hpcps.data.stored import ArraySource
from hpcps.errors import ConfigError, DataError
from hpcps.together import Together

AnySource = ArraySource | CsvSource | LibsvmSource | BuiltinSource
FORMATS = ("idx", "npz", "npy", "csv", "libsvm")
SNIFFED_BYTES = 1 << 16
SUFFIX_FORMATS = {
    ".npy": "npy",
    ".npz": "npz",
    ".csv": "csv",
    ".tsv": "csv",
    ".libsvm": "libsvm",
    ".svm": "libsvm",
    ".svmlight": "libsvm",
}


class DataOptions(Protocol):
    """The attributes of ``[data]`` in the configuration."""

    @property
    def path(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def labels(self) -> str: ...
    @property
    def test(self) -> str: ...
    @property
    def test_fraction(self) -> float: ...
    @property
    def scale(self) -> str: ...
    @property
    def label_column(self) -> str: ...
    @property
    def features(self) -> int: ...
    @property
    def zero_based(self) -> bool: ...
    @property
    def window(self) -> int: ...
    @property
    def hash_bits(self) -> int: ...


class Survey(msgspec.Struct, frozen=True):
    """The files of a data set; ``test`` is empty where nothing is held out in files of its own."""

    train: list[AnySource]
    test: list[AnySource]


@dataclass(frozen=True)
class Opening:
    """How files are opened: the options, a label file, and what a finished model expects (0: anything)."""

    options: DataOptions
    labels: str = ""
    labelled: bool = True
    features: int = 0


def survey_together(options: DataOptions, together: Together) -> Survey:
    """Survey the data set on rank 0 and tell all ranks; no other rank opens a file. Raises on all ranks."""
    told = together.once(lambda: _encode(survey(options)))
    return msgspec.msgpack.decode(told.tobytes(), type=Survey)


def _encode(found: Survey) -> Array:
    try:
        return np.frombuffer(msgspec.msgpack.encode(found), np.uint8)
    except UnicodeEncodeError as error:
        raise DataError(f"a file name is not valid Unicode ({error}); rename the file") from error


def survey(options: DataOptions) -> Survey:
    """Open the training files and what is held out; raises ConfigError or DataError."""
    if not options.path:
        raise ConfigError("data.path is empty; name a file, a folder, a glob or a built-in data set")
    if options.test and options.test_fraction:
        raise ConfigError("data.test and data.test_fraction exclude each other; remove one")
    train, test = open_path(options.path, Opening(options, options.labels))
    if options.test:
        test = open_held_out(options.test, Opening(options))
    elif test and options.test_fraction:
        raise ConfigError(f"{options.path} has held-out samples of its own; remove data.test_fraction")
    check_agreement([*train, *test])
    return Survey(train, test)


def open_held_out(path: str, how: Opening) -> list[AnySource]:
    """The held-out files of a path: those set apart as such, or all where there are none."""
    main, held_out = open_path(path, how)
    return held_out or main


def open_path(path: str, how: Opening) -> tuple[list[AnySource], list[AnySource]]:
    """The files of a built-in name, file, folder or glob: main ones, and held-out ones beside them."""
    if path in SHAPES:
        return [BuiltinSource(path, "train")], [BuiltinSource(path, "test")]
    if not os.path.exists(path) and re.fullmatch(r"\w+", path):
        raise DataError(f"{path}: no such file, and no built-in data set (built-in: {', '.join(SHAPES)})")
    files, held_out_files = matching(path)
    main, held_out = _open_files(files, how)
    if held_out_files:
        first, second = _open_files(held_out_files, how)
        held_out = second or first
    return main, held_out


def _open_files(files: list[str], how: Opening) -> tuple[list[AnySource], list[AnySource]]:
    label_files = {idx_label_name(file) for file in files} | {npy_label_name(file) for file in files}
    files = [file for file in files if len(files) == 1 or file not in label_files]
    if how.labels and len(files) > 1:
        raise ConfigError(f"data.labels names one file, but there are {len(files)} with samples ({files[0]}, …)")
    formats = {file: format_of(file, how.options.format) for file in files}
    for file, found in formats.items():
        if found != formats[files[0]]:
            raise DataError(f"{files[0]} is {formats[files[0]]}, but {file} is {found}; a data set has one format")
    pairs = [_open_file(file, formats[file], how) for file in files]
    return [main for main, _ in pairs], [test for _, test in pairs if test is not None]


def _open_file(file: str, kind: str, how: Opening) -> tuple[AnySource, AnySource | None]:
    if how.labels and kind not in ("idx", "npy"):
        raise ConfigError(f"data.labels is for idx and npy; {file} ({kind}) holds its labels itself")
    options = how.options
    if options.hash_bits and kind != "csv":
        raise ConfigError(f"data.hash_bits is for CSV; {file} is {kind}")
    if kind == "idx":
        return open_idx(file, how.labels, how.labelled), None
    if kind == "npy":
        return open_npy(file, how.labels, how.labelled), None
    if kind == "npz":
        return open_npz(file, how.labelled)
    if kind == "csv":
        return open_csv(file, options.label_column, how.features, how.labelled, options.hash_bits), None
    return open_libsvm(file, how.features or options.features, options.zero_based), None


def format_of(path: str, given: str = "auto") -> str:
    """The format of a file, by its name or else by its content; raises DataError if neither tells."""
    if given != "auto":
        if given not in FORMATS:
            raise ConfigError(f"data.format = '{given}' is not known; use auto, {', '.join(FORMATS)}")
        return given
    suffix = os.path.splitext(path.lower().removesuffix(".gz"))[1]
    start = unpacked_start_of(path, SNIFFED_BYTES)
    if suffix in SUFFIX_FORMATS:
        return SUFFIX_FORMATS[suffix]
    if is_idx_name(path) or is_idx(start):
        return "idx"
    if start.startswith(MAGIC):
        return "npy"
    if start.startswith((b"PK\3\4", b"PK\5\6")):
        return "npz"
    return _text_format(path, start)


def _text_format(path: str, start: bytes) -> str:
    text = start.decode("utf-8-sig", "replace")
    line = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    if "\0" not in text:
        if re.fullmatch(r"\s*[-+.\w]+(\s+(qid|\d+):\S+)+\s*(#.*)?", line):
            return "libsvm"
        if re.search(r"[,;\t]", line):
            return "csv"
    packed = " (compressed)" if is_gzip(path) else ""
    raise DataError(f"{path}{packed}: format not recognised; set data.format to one of {', '.join(FORMATS)}")


def check_agreement(sources: list[AnySource]) -> None:
    """Raise DataError unless all files have the same columns."""
    first = sources[0]
    for source in sources[1:]:
        if source.sparse != first.sparse:
            raise DataError(f"{first.file} and {source.file}: one is sparse (libsvm), the other is not")
        if source.features != first.features:
            raise DataError(f"{source.file}: {source.features} features, but {first.file} has {first.features}")
        if isinstance(source, CsvSource) and isinstance(first, CsvSource):
            if source.columns != first.columns:
                raise DataError(f"{source.file}: {source.columns} columns, but {first.file} has {first.columns}")
            if source.label != first.label:
                raise DataError(f"{source.file}: its label is in another column than that of {first.file}")
            if source.header and first.header and source.header != first.header:
                raise DataError(f"{source.file}: its columns are called differently from those of {first.file}")
