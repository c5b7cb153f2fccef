"""Text files in which a line is a sample: a sparse index of where lines begin, and reading some of them."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from hpcps.data.blocks import Ints
from hpcps.data.files import reading, start_of
from hpcps.data.pieces import Rows
from hpcps.errors import DataError

EVERY = 1024  # lines from one mark to the next
BATCH_LINES = 4096


class LineIndex(msgspec.Struct, frozen=True):
    """Where every 1024th line with content begins. Blank lines do not count, nor do lines of comment only."""

    count: int  # lines with content
    offsets: list[int]  # bytes from the start of the file
    numbers: list[int]  # line numbers, from 1
    comment: bytes  # what begins a comment; empty: nothing does


def index_lines(path: str, comment: bytes = b"") -> LineIndex:
    """Read a file once and index its lines; raises DataError if it has none."""
    start_of(path, 1)
    count = offset = 0
    offsets, numbers = [], []
    with reading(path), open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if has_content(line, comment):
                if count % EVERY == 0:
                    offsets.append(offset)
                    numbers.append(number)
                count += 1
            offset += len(line)
    if not count:
        raise DataError(f"{path}: the file holds only blank lines")
    return LineIndex(count, offsets, numbers, comment)


def has_content(line: bytes, comment: bytes) -> bool:
    """Whether a line is neither blank nor only a comment."""
    if comment and comment in line:
        line = line.partition(comment)[0]
    return not (line.isspace() or not line)


def read_lines(path: str, index: LineIndex, rows: Rows) -> Iterator[tuple[list[bytes], Ints]]:
    """Batches of lines and their line numbers; only the part of the file that the rows span is read."""
    lines: list[bytes] = []
    numbers: list[int] = []
    for line, number in _chosen(path, index, rows):
        lines.append(line)
        numbers.append(number)
        if len(lines) == BATCH_LINES:
            yield lines, np.array(numbers, np.int64)
            lines, numbers = [], []
    if lines:
        yield lines, np.array(numbers, np.int64)


def _chosen(path: str, index: LineIndex, rows: Rows) -> Iterator[tuple[bytes, int]]:
    wanted = iter(rows)
    row = next(wanted)
    mark = int(row) // EVERY
    at = mark * EVERY
    with reading(path), open(path, "rb") as file:
        file.seek(index.offsets[mark])
        for number, line in enumerate(file, index.numbers[mark]):
            if not has_content(line, index.comment):
                continue
            if at == row:
                yield line, number
                following = next(wanted, None)
                if following is None:
                    return
                row = following
            at += 1
    raise DataError(f"{path}: the file became shorter while it was read")
