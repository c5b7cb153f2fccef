"""Text tables: a sample a line, numbers between commas, semicolons or tabs, the label in one column."""

from __future__ import annotations

import csv

import msgspec
import numpy as np

from hpcps.data.blocks import Floats, Ints
from hpcps.data.files import is_gzip
from hpcps.data.lines import LineIndex, index_lines, read_lines
from hpcps.data.pieces import Piece, Rows
from hpcps.errors import ConfigError, DataError

DELIMITERS = "\t;,"  # the first of these that the first line contains
LABEL_NAMES = ("label", "target", "class", "y")  # the first that a header has


class CsvSource(msgspec.Struct, frozen=True, tag="csv"):
    """A surveyed text table."""

    file: str
    delimiter: str
    header: list[str]  # empty: the file has none
    columns: int
    label: int  # its column; -1: the file has none
    index: LineIndex

    noun = "line"
    dtype = "float32"
    sparse = False

    @property
    def label_file(self) -> str:
        return self.file

    @property
    def count(self) -> int:
        return self.index.count - self._lead

    @property
    def features(self) -> int:
        return self.columns - self.labelled

    @property
    def labelled(self) -> bool:
        return self.label >= 0

    @property
    def _lead(self) -> int:
        return 1 if self.header else 0

    def read(self, rows: Rows) -> Piece:
        """Samples (m, D) float32, labels (m,) float64; raises DataError naming line and column."""
        samples = np.empty((len(rows), self.features), np.float32)
        labels = np.empty(len(rows), np.float64) if self.labelled else None
        numbers = np.empty(len(rows), np.int64)
        moved = range(rows.start + self._lead, rows.stop + self._lead) if isinstance(rows, range) else rows + self._lead
        filled = 0
        for lines, at in read_lines(self.file, self.index, moved):
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

    def _parse(self, lines: list[bytes], numbers: Ints) -> Floats:
        """Numbers (m, columns) of some lines; raises DataError for any that float32 cannot hold."""
        text = [line.decode("utf-8-sig", "replace").rstrip("\r\n") for line in lines]
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
                if not is_number(field):
                    what = f"{field.strip()!r} is not a number" if field.strip() else "the field is empty"
                    remedy = "; labels must be numbers" if column == self.label and field.strip() else ""
                    if len(fields) == self.columns or field.strip():
                        return DataError(f"{self._place(number, column)}: {what}{remedy}")
            if len(fields) != self.columns:
                return DataError(f"{self.file}: line {number} has {len(fields)} columns instead of {self.columns}")
        return DataError(f"{self.file}: lines {numbers[0]} to {numbers[-1]} cannot be read as a table of numbers")

    def _place(self, number: int, column: int) -> str:
        name = f" ({self.header[column]})" if self.header else ""
        return f"{self.file}: line {number}, column {column + 1}{name}"


def open_csv(path: str, label_column: str = "auto", features: int = 0, labelled: bool = True) -> CsvSource:
    """Survey a text table; raises DataError, and ConfigError for a label column that it does not have.

    Where it need not be ``labelled`` and has exactly ``features`` columns, no column is taken as the label.
    """
    if is_gzip(path):
        raise DataError(f"{path}: compressed text is not read; unpack it first (gunzip)")
    index = index_lines(path)
    [([first], _)] = read_lines(path, index, range(1))
    line = first.decode("utf-8-sig", "replace").rstrip("\r\n")
    delimiter = delimiter_of(line)
    fields = [field.strip() for field in split_line(line, delimiter)]
    header = fields if is_header(fields, label_column) else []
    label = -1
    if labelled or len(fields) != features:
        label = find_label(path, label_column, header, len(fields))
    source = CsvSource(path, delimiter, header, len(fields), label, index)
    if not source.count:
        raise DataError(f"{path}: holds a header, but no samples")
    if not source.features:
        raise DataError(f"{path}: has one column only; samples need at least one feature besides the label")
    return source


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
