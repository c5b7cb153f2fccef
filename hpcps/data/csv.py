"""Text tables: a sample a line, numbers or categories between commas, semicolons or tabs, the label in one column."""

from __future__ import annotations

import csv

import msgspec
import numpy as np

from hpcps.data.blocks import Array, Csr, Floats, Ints
from hpcps.data.files import is_gzip
from hpcps.data.lines import LineIndex, Lines, index_lines, read_lines, read_text
from hpcps.data.pieces import Piece, Rows, join_sparse
from hpcps.errors import ConfigError, DataError

DELIMITERS = "\t;,"  # the first of these that the first line contains
BOM = b"\xef\xbb\xbf"
LABEL_NAMES = ("label", "target", "class", "y")  # the first that a header has


class CsvSource(msgspec.Struct, frozen=True, tag="csv"):
    """A surveyed text table."""

    file: str
    delimiter: str
    header: list[str]  # empty: the file has none
    columns: int
    label: int  # its column; -1: the file has none
    index: LineIndex
    hash_bits: int = 0  # columns are categories, hashed into 2^hash_bits features; 0: they are numbers

    noun = "line"
    dtype = "float32"

    @property
    def label_file(self) -> str:
        return self.file

    @property
    def count(self) -> int:
        return self.index.count - self._lead

    @property
    def sparse(self) -> bool:
        return self.hash_bits > 0

    @property
    def features(self) -> int:
        return 1 << self.hash_bits if self.hash_bits else self.columns - self.labelled

    @property
    def labelled(self) -> bool:
        return self.label >= 0

    @property
    def _lead(self) -> int:
        return 1 if self.header else 0

    def read(self, rows: Rows) -> Piece:
        """Samples (m, D) float32 or Csr, labels (m,) float64; raises DataError naming line and column."""
        moved = range(rows.start + self._lead, rows.stop + self._lead) if isinstance(rows, range) else rows + self._lead
        return self._read_categories(moved) if self.hash_bits else self._read_numbers(moved)

    def _read_numbers(self, rows: Rows) -> Piece:
        samples = np.empty((len(rows), self.features), np.float32)
        labels = np.empty(len(rows), np.float64) if self.labelled else None
        numbers = np.empty(len(rows), np.int64)
        filled = 0
        for lines, at in read_lines(self.file, self.index, rows):
            own = slice(filled, filled + len(lines))
            numbers[own] = at
            table = self._parse(lines, at)
            if labels is not None:
                labels[own] = table[:, self.label]
                table = np.delete(table, self.label, axis=1)
            with np.errstate(over="ignore"):
                samples[own] = table
            filled += len(lines)
        return Piece(samples, labels, numbers)

    def _read_categories(self, rows: Rows) -> Piece:
        """A sample has an entry 1 for each column but the label's, in the order of the columns."""
        parts, labels, numbers = [], [], []
        for lines in read_text(self.file, self.index, rows):
            text, offsets = self._fields(lines)
            parts.append(self._hashed(text, offsets))
            labels.append(self._labels_of(text, offsets, lines.numbers))
            numbers.append(lines.numbers)
        return Piece(join_sparse(parts), np.concatenate(labels) if self.labelled else None, np.concatenate(numbers))

    def _fields(self, lines: Lines) -> tuple[Array, Ints]:
        """The text of all fields, and where each begins and the last ends (m * columns + 1,)."""
        from hpcps_kernels import load  # late: brings the compiler

        data = lines.text[len(BOM) :] if lines.text[: len(BOM)].tobytes() == BOM else lines.text
        text, offsets = np.empty_like(data), np.empty(len(lines.numbers) * self.columns + 1, np.int64)
        ragged = load("cpu").split_fields(text, offsets, data, ord(self.delimiter), self.columns)
        if ragged:
            fields = split_line(decoded(lines.split()[ragged - 1]), self.delimiter)
            raise self._ragged(lines.numbers[ragged - 1], len(fields))
        return text, offsets

    def _hashed(self, text: Array, offsets: Ints) -> Csr:
        from hpcps_kernels import load

        count = (len(offsets) - 1) // self.columns
        keys = np.empty(len(offsets) - 1, np.int64)
        load("cpu").murmur3_64(keys, text, offsets, 0)
        columns = np.tile(np.arange(self.columns), count)
        load("cpu").hash_pairs(keys, columns, keys.copy(), 0, self.hash_bits)
        kept = keys.reshape(count, self.columns).astype(np.int32)
        if self.labelled:
            kept = np.delete(kept, self.label, axis=1)
        indptr = np.arange(count + 1) * kept.shape[1]
        return Csr(indptr, kept.reshape(-1), np.ones(kept.size, np.float32), self.features)

    def _labels_of(self, text: Array, offsets: Ints, numbers: Ints) -> Floats:
        """The labels (m,), finite; raises DataError for one that is not."""
        begins, ends = offsets[self.label :: self.columns], offsets[self.label + 1 :: self.columns]
        content = text.tobytes()
        words = [content[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=False)]
        try:
            if b"_" in b"".join(words):
                raise ValueError
            labels = np.array([float(word) for word in words])
        except ValueError:
            fields = [word.decode("utf-8", "replace") for word in words]
            row = next(row for row, field in enumerate(fields) if not is_number(field))
            raise self._no_number(numbers[row], self.label, fields[row]) from None
        if not np.isfinite(labels).all():
            row = int(np.argmin(np.isfinite(labels)))
            raise DataError(f"{self._place(numbers[row], self.label)}: {labels[row]} is not a finite number")
        return labels

    def _parse(self, lines: list[bytes], numbers: Ints) -> Floats:
        """Numbers (m, columns) of some lines; raises DataError for any that float32 cannot hold."""
        text = [decoded(line) for line in lines]
        try:
            table = np.loadtxt(text, delimiter=self.delimiter, comments=None, quotechar='"', ndmin=2)
        except (ValueError, OverflowError):
            raise self._culprit(text, numbers) from None
        if table.shape != (len(lines), self.columns):
            raise self._culprit(text, numbers)
        with np.errstate(over="ignore"):
            finite = np.isfinite(table.astype(np.float32))
        if self.labelled:
            finite[:, self.label] = np.isfinite(table[:, self.label])
        if not finite.all():
            row, column = (int(n) for n in np.argwhere(~finite)[0])
            raise DataError(f"{self._place(numbers[row], column)}: {table[row, column]} is not a finite number")
        return table

    def _culprit(self, text: list[str], numbers: Ints) -> DataError:
        """What is wrong in lines that could not be parsed: the first bad field, or the first ragged line."""
        for line, number in zip(text, numbers, strict=True):
            fields = split_line(line, self.delimiter)
            for column, field in enumerate(fields[: self.columns]):
                if not is_number(field) and (len(fields) == self.columns or field.strip()):
                    return self._no_number(number, column, field)
            if len(fields) != self.columns:
                return self._ragged(number, len(fields))
        return DataError(f"{self.file}: lines {numbers[0]} to {numbers[-1]} cannot be read as a table of numbers")

    def _no_number(self, number: int, column: int, field: str) -> DataError:
        what = f"{field.strip()!r} is not a number" if field.strip() else "the field is empty"
        remedy = "; labels must be numbers" if column == self.label and field.strip() else ""
        return DataError(f"{self._place(number, column)}: {what}{remedy}")

    def _ragged(self, number: int, columns: int) -> DataError:
        return DataError(f"{self.file}: line {number} has {columns} columns instead of {self.columns}")

    def _place(self, number: int, column: int) -> str:
        name = f" ({self.header[column]})" if self.header else ""
        return f"{self.file}: line {number}, column {column + 1}{name}"


def open_csv(
    path: str, label_column: str = "auto", features: int = 0, labelled: bool = True, hash_bits: int = 0
) -> CsvSource:
    """Survey a text table; raises DataError, and ConfigError for a label column that it does not have.

    Where it need not be ``labelled`` and has exactly ``features`` columns, no column is taken as the label. With
    ``hash_bits`` the features do not tell, and there must be one.
    """
    if is_gzip(path):
        raise DataError(f"{path}: compressed text is not read; unpack it first (gunzip)")
    index = index_lines(path)
    [([first], _)] = read_lines(path, index, range(1))
    line = decoded(first)
    delimiter = delimiter_of(line)
    fields = [field.strip() for field in split_line(line, delimiter)]
    header = fields if is_header(fields, label_column) else []
    label = -1
    if labelled or hash_bits or len(fields) != features:
        label = find_label(path, label_column, header, len(fields))
    source = CsvSource(path, delimiter, header, len(fields), label, index, hash_bits)
    if not source.count:
        raise DataError(f"{path}: holds a header, but no samples")
    if source.columns == source.labelled:
        raise DataError(f"{path}: has one column only; samples need at least one feature besides the label")
    return source


def decoded(line: bytes) -> str:
    """A line as text, without its end and what marks a file as UTF-8."""
    return line.decode("utf-8-sig", "replace").rstrip("\r\n")


def delimiter_of(line: str) -> str:
    """What stands between the columns of a line, outside of quotes; a comma if nothing does."""
    bare = "".join(line.split('"')[::2])
    return next((mark for mark in DELIMITERS if mark in bare), ",")


def split_line(line: str, delimiter: str) -> list[str]:
    """The fields of a line, without quotes."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [""])
    except csv.Error:
        return line.split(delimiter)


def is_number(field: str) -> bool:
    """Whether a field is a decimal number, NaN or infinity."""
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field and field.isascii()


def is_header(fields: list[str], label_column: str = "auto") -> bool:
    """Whether a first line holds names: no number at all, or the name of a label column among numbers."""
    words = [field for field in fields if field and not is_number(field)]
    if any(word.lower() in LABEL_NAMES or word == label_column for word in words):
        return True
    return bool(words) and not any(is_number(field) for field in fields)


def find_label(path: str, label_column: str, header: list[str], columns: int) -> int:
    """The number of the label's column, from a name, a number (negative from the end) or ``auto``."""
    if label_column == "auto":
        lower = [name.lower() for name in header]
        return next((lower.index(name) for name in LABEL_NAMES if name in lower), columns - 1)
    if label_column in header:
        return header.index(label_column)
    try:
        number = int(label_column)
    except ValueError:
        have = f"its columns are {', '.join(header)}" if header else "it has no header"
        raise ConfigError(f"data.label_column = '{label_column}' is no column of {path}: {have}") from None
    if not -columns <= number < columns:
        raise ConfigError(f"data.label_column = {number} is no column of {path}, which has {columns}")
    return number % columns
