"""Arrays in binary files: where their bytes lie, and reading some of their rows."""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import IO, Any, cast

import msgspec
import numpy as np

from hpcps.data.blocks import Array
from hpcps.data.files import DEFLATE_MOST, reading
from hpcps.data.pieces import Piece, Rows, span
from hpcps.errors import DataError

KEPT = ("uint8", "int8", "int16", "int32", "int64", "float32", "float64")
STREAM_BYTES = 1 << 22


def kept_dtype(stored: str) -> str:
    """The dtype that samples stored as ``stored`` are kept in: their own, or float32."""
    name = np.dtype(stored).newbyteorder("=").name
    return name if name in KEPT else "float32"


class StoredArray(msgspec.Struct, frozen=True):
    """An array in a file. ``packing``: "" (bytes as they are), "gzip", or "zip" (a compressed member)."""

    path: str
    dtype: str  # with byte order, such as "<f4"
    shape: tuple[int, ...]
    offset: int  # of the first element, after unpacking
    packing: str = ""
    member: str = ""
    fortran: bool = False

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self._item_bytes

    @property
    def width(self) -> int:
        """Elements in a row."""
        return prod(self.shape[1:])

    def check_size(self, held: int, exact: bool = True) -> None:
        """Raise DataError unless ``held`` bytes (at most so many where not ``exact``) fit the header."""
        wanted = self.offset + self.nbytes
        name = f"{self.path} ({self.member})" if self.member else self.path
        if held < wanted:
            raise DataError(
                f"{name}: the file is cut off: its header promises {self.shape} values of {self.dtype} "
                f"({wanted} bytes), but it holds {'at most ' if not exact else ''}{held} bytes"
            )
        if exact and held > wanted:
            raise DataError(f"{name}: {held - wanted} bytes more than the {self.shape} values that its header promises")

    def rows(self, rows: Rows) -> Array:
        """Read rows as an array (len(rows), width) of the stored values in native byte order.

        Memory-mapped (private, copy on write) where the rows follow each other and the bytes can be used as
        they are; otherwise only these rows are in memory.
        """
        with reading(self.path):
            if self.fortran:
                table = self._transposed(rows)
            elif self.packing:
                table = self._streamed(rows)
            else:
                low, high = span(rows)
                table = _map(self.path, self.dtype, (high - low, self.width), self.offset + low * self._row_bytes)
                table = table if isinstance(rows, range) else table[rows - low]
            native = np.dtype(self.dtype).newbyteorder("=")
            return np.require(table, native, ["C", "ALIGNED"])

    def _transposed(self, rows: Rows) -> Array:
        """Rows of an array in Fortran order; all of it must be unpacked where it is packed."""
        if self.packing:
            with self.stream() as file:
                values = np.frombuffer(_read_exactly(file, self.nbytes), self.dtype)
        else:
            values = _map(self.path, self.dtype, (1, self.nbytes // self._item_bytes), self.offset)
        whole = values.reshape(self.shape, order="F")
        chosen = whole[rows.start : rows.stop] if isinstance(rows, range) else whole[rows]
        return chosen.reshape(len(rows), -1)

    @property
    def _item_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def _row_bytes(self) -> int:
        return self.width * self._item_bytes

    def _streamed(self, rows: Rows) -> Array:
        """Read the file from its start as far as needed; with the last row, past its checksum."""
        low, high = span(rows)
        out = np.empty((len(rows), self.width), self.dtype)
        with self.stream() as file:
            _skip(file, low * self._row_bytes)
            step = max(1, STREAM_BYTES // self._row_bytes)
            filled = 0
            for start in range(low, high, step):
                stop = min(start + step, high)
                chunk = np.frombuffer(_read_exactly(file, (stop - start) * self._row_bytes), self.dtype)
                wanted = _wanted(rows, low, start, stop)
                taken = chunk.reshape(stop - start, -1)[wanted]
                out[filled : filled + len(taken)] = taken
                filled += len(taken)
            if high == self.shape[0] and file.read(1):
                raise DataError(f"{self.path}: more bytes than the {self.shape} values that its header promises")
        return out

    @contextmanager
    def stream(self) -> Iterator[IO[bytes]]:
        """The bytes of a packed array, unpacked, from the first element on."""
        if self.packing == "zip":
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                _skip(file, self.offset)
                yield file
        else:
            with gzip.open(self.path, "rb") as packed:
                _skip(cast(IO[bytes], packed), self.offset)
                yield cast(IO[bytes], packed)


def most_unpacked(packed_bytes: int) -> int:
    """The most bytes that gzip or a zip member can unpack to."""
    return packed_bytes * DEFLATE_MOST


def _wanted(rows: Rows, low: int, start: int, stop: int) -> Any:
    """Which of the rows start..stop-1 are among ``rows``, as an index into them."""
    if isinstance(rows, range):
        return slice(None)
    first, last = np.searchsorted(rows, [start, stop])
    return rows[first:last] - start


def _map(path: str, dtype: str, shape: tuple[int, int], offset: int) -> Array:
    """Map bytes of a file, privately writable: a user's function that writes leaves the file alone."""
    if os.path.getsize(path) < offset + prod(shape) * np.dtype(dtype).itemsize:
        raise EOFError("it became shorter while it was read")
    try:
        return np.asarray(np.memmap(path, dtype, "c", offset, shape))
    except OSError:  # no memory may be promised for private copies
        return np.asarray(np.memmap(path, dtype, "r", offset, shape))


def _skip(file: IO[bytes], size: int) -> None:
    while size:
        got = len(file.read(min(size, STREAM_BYTES)))
        if not got:
            raise EOFError("it ends too early")
        size -= got


def _read_exactly(file: IO[bytes], size: int) -> bytes:
    values = file.read(size)
    if len(values) < size:
        raise EOFError("it ends too early")
    return values


class ArraySource(msgspec.Struct, frozen=True, tag="arrays"):
    """Samples as one stored array (n, …), labels as another (n,) in the same or in a second file."""

    samples: StoredArray
    labels: StoredArray | None

    noun = "sample"
    sparse = False

    @property
    def file(self) -> str:
        return self.samples.path

    @property
    def label_file(self) -> str:
        return self.labels.path if self.labels else self.samples.path

    @property
    def count(self) -> int:
        return self.samples.shape[0]

    @property
    def features(self) -> int:
        return self.samples.width

    @property
    def dtype(self) -> str:
        return kept_dtype(self.samples.dtype)

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    def read(self, rows: Rows) -> Piece:
        """Samples (m, D) in a kept dtype, labels (m,) as stored; raises DataError."""
        samples = self.samples.rows(rows)
        labels = self.labels.rows(rows).reshape(-1) if self.labels else None
        with np.errstate(over="ignore", invalid="ignore"):
            samples = samples.astype(self.dtype, copy=False)
        return Piece(samples, labels, rows)


def pair(samples: StoredArray, labels: StoredArray | None) -> ArraySource:
    """Samples and labels as a source, after checking that they belong together; raises DataError."""
    if not samples.shape or not samples.shape[0]:
        raise DataError(f"{samples.path}: holds no samples (its shape is {samples.shape})")
    if not samples.width:
        raise DataError(f"{samples.path}: its samples have no features (its shape is {samples.shape})")
    if labels is not None:
        if len(labels.shape) not in (1, 2) or labels.width != 1:
            raise DataError(f"{labels.path}: labels of shape {labels.shape}; expected one number a sample")
        if labels.shape[0] != samples.shape[0]:
            raise DataError(
                f"{samples.path} holds {samples.shape[0]} samples, but {labels.path} {labels.shape[0]} labels"
            )
    return ArraySource(samples, labels)
