"""libsvm text: a sample a line, ``LABEL INDEX:VALUE INDEX:VALUE … # comment``."""

from __future__ import annotations

import msgspec
import numpy as np

from hpcps.data.blocks import Csr, Floats, Ints
from hpcps.data.files import is_gzip
from hpcps.data.lines import LineIndex, Lines, index_lines, read_text
from hpcps.data.pieces import Piece, Rows, join_sparse
from hpcps.errors import DataError


class LibsvmSource(msgspec.Struct, frozen=True, tag="libsvm"):
    """A surveyed libsvm file. ``features`` is 0 where the largest index of all the data decides."""

    file: str
    features: int
    zero_based: bool
    index: LineIndex

    noun = "line"
    dtype = "float32"
    sparse = True
    labelled = True

    @property
    def label_file(self) -> str:
        return self.file

    @property
    def count(self) -> int:
        return self.index.count

    def read(self, rows: Rows) -> Piece:
        """Samples as Csr (its ``features``: given, or largest index seen here), labels (m,) float64.

        Raises DataError naming the line of bad content.
        """
        labels, parts, numbers = [], [], []
        for lines in read_text(self.file, self.index, rows):
            own_labels, part = self._parse(lines)
            labels.append(own_labels)
            parts.append(part)
            numbers.append(lines.numbers)
        return Piece(join_sparse(parts), np.concatenate(labels), np.concatenate(numbers))

    def _parse(self, lines: Lines) -> tuple[Floats, Csr]:
        from hpcps_kernels import ParseError, load  # late: brings the compiler

        numbers = lines.numbers
        try:
            labels, indptr, indices, values = load("cpu").parse_libsvm(lines.text, self.zero_based, np.float32)
        except ParseError as error:
            line = numbers[error.line - 1]
            raise DataError(f"{self.file}: line {line}, byte {error.column}: {error.reason}") from None
        part = Csr(indptr, indices, values, self.features or int(indices.max(initial=-1)) + 1)
        self._check(part, numbers)
        return labels, part

    def _check(self, part: Csr, numbers: Ints) -> None:
        finite = np.isfinite(part.values)
        inside = part.indices < part.features
        if finite.all() and inside.all():
            return
        entry = int(np.argmin(finite & inside))
        line = numbers[int(np.searchsorted(part.indptr, entry, side="right")) - 1]
        index = int(part.indices[entry]) + (not self.zero_based)
        if inside[entry]:
            raise DataError(f"{self.file}: line {line}, index {index}: the value is not a finite float32 number")
        raise DataError(f"{self.file}: line {line}: the index {index} is beyond the {part.features} features expected")


def open_libsvm(path: str, features: int = 0, zero_based: bool = False) -> LibsvmSource:
    """Survey a libsvm file; raises DataError."""
    if is_gzip(path):
        raise DataError(f"{path}: compressed text is not read; unpack it first (gunzip)")
    return LibsvmSource(path, features, zero_based, index_lines(path, b"#"))
