"""Finding files, and turning everything that can go wrong with one into a DataError that names it."""

from __future__ import annotations

import glob
import gzip
import os
import re
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from hpcps.errors import DataError, HpcpsError

GZIP_MAGIC = b"\x1f\x8b"
DEFLATE_MOST = 1032  # DEFLATE turns one byte into at most this many
PARSING = threading.Lock()
"""Held while an .npy header is parsed: ``ast`` is not safe to call from several threads (CPython issue 106905)."""

SUFFIXES = (".csv", ".tsv", ".libsvm", ".svm", ".svmlight", ".npz", ".npy", ".idx", ".data")
TRAIN_WORD = re.compile(r"(^|[^a-z])train(ing)?([^a-z]|$)", re.IGNORECASE)
TEST_WORD = re.compile(r"(^|[^a-z])(test(ing)?|t10k)([^a-z]|$)", re.IGNORECASE)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn any error of reading or unpacking ``path`` inside the block into a DataError."""
    try:
        yield
    except HpcpsError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged or cut off ({error}); copy or write the file again") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, NotImplementedError, RuntimeError, OverflowError, LookupError) as error:
        raise DataError(f"{path}: damaged, or not written as its format demands ({error})") from error


def start_of(path: str, size: int) -> bytes:
    """The first ``size`` bytes of a file; raises DataError if there are none."""
    with reading(path), open(path, "rb") as file:
        start = file.read(size)
    if not start:
        raise DataError(f"{path}: the file is empty")
    return start


def is_gzip(path: str) -> bool:
    """Whether the file starts like gzip data."""
    return start_of(path, 2) == GZIP_MAGIC


def unpacked_start_of(path: str, size: int) -> bytes:
    """The first bytes of a file after unpacking gzip, where it is packed."""
    if not is_gzip(path):
        return start_of(path, size)
    with reading(path), gzip.open(path, "rb") as file:
        return file.read(size)


def matching(path: str) -> tuple[list[str], list[str]]:
    """The files that a path, folder or glob stands for: training ones, and held-out ones of a folder.

    Files are in sorted order. In a folder, the word ``train`` and the word ``test`` or ``t10k`` in names
    tell the two apart. Raises DataError if there is no file.
    """
    if os.path.isdir(path):
        return _in_folder(path)
    if not os.path.exists(path) and glob.has_magic(path):
        with reading(path):
            files = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
        if not files:
            raise DataError(f"{path}: no file matches")
        return files, []
    with reading(path):
        os.stat(path)
    return [path], []


def _in_folder(path: str) -> tuple[list[str], list[str]]:
    with reading(path):
        names = sorted(entry.name for entry in os.scandir(path) if entry.is_file() and entry.name[0] != ".")
    names = [name for name in names if name.removesuffix(".gz") == name or name.removesuffix(".gz") not in names]
    names = [name for name in names if _looks_like_data(name)] or [n for n in names if n.endswith(".txt")]
    if not names:
        raise DataError(f"{path}: the folder holds no data files (such as {', '.join(SUFFIXES[:6])} or IDX)")
    train = [name for name in names if TRAIN_WORD.search(name)]
    test = [name for name in names if TEST_WORD.search(name)]
    others = [name for name in names if name not in train and name not in test]
    if train and test and others:
        raise DataError(
            f"{path}: the folder holds training and test files, and {others[0]} that is neither; "
            "name the files by a glob in data.path and data.test"
        )
    if not (train and test):
        train, test = names, []
    return [os.path.join(path, name) for name in train], [os.path.join(path, name) for name in test]


def _looks_like_data(name: str) -> bool:
    lower = name.lower().removesuffix(".gz")
    return lower.endswith(SUFFIXES) or is_idx_name(lower)


def is_idx_name(name: str) -> bool:
    """Whether a file is named like IDX data, such as ``train-images-idx3-ubyte.gz``."""
    return re.search(r"[-.]idx\d?([-.]|$)|[-.]ubyte(\.gz)?$", os.path.basename(name).lower()) is not None
