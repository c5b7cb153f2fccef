"""Text files in which a line is a sample: a sparse index of where lines begin, and reading some of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from hpcps.data.blocks import Array, Ints
from hpcps.data.files import reading, start_of
from hpcps.data.pieces import Rows, rows_between, span
from hpcps.errors import DataError

EVERY = 1024  # lines from one mark to the next
CHUNK_BYTES = 1 << 22


class LineIndex(msgspec.Struct, frozen=True):
    """Where every 1024th line with content begins. Blank lines do not count, nor do lines of comment only."""

    count: int  # lines with content
    offsets: list[int]  # bytes from the start of the file
    numbers: list[int]  # line numbers, from 1
    comment: bytes  # what begins a comment; empty: nothing does
    size: int  # of the file, in bytes

    @property
    def comment_byte(self) -> int:
        """The comment's byte as kernels take it: -1 for none."""
        return self.comment[0] if self.comment else -1


@dataclass(frozen=True)
class Lines:
    """Some lines with content: ``text`` (uint8) holds them, and nothing between them; ``numbers`` (m,) in the file."""

    text: Array
    numbers: Ints

    def split(self) -> list[bytes]:
        """The lines one by one, each with its newline if it has one."""
        lines = [line + b"\n" for line in self.text.tobytes().split(b"\n")]
        return lines[:-1] if lines[-1] == b"\n" else [*lines[:-1], lines[-1][:-1]]


def index_lines(path: str, comment: bytes = b"") -> LineIndex:
    """Read a file once, in chunks, and index its lines; raises DataError if it has none."""
    from hpcps_kernels import load  # late: brings the compiler

    start_of(path, 1)
    index = LineIndex(0, [], [], comment, 0)
    state = np.array([0, 1, 0, 0, 0, 0, 0, 0])
    offsets, numbers = (np.empty(CHUNK_BYTES // EVERY + 1, np.int64) for _ in range(2))
    buffer = np.empty(CHUNK_BYTES, np.uint8)
    with reading(path), open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer.data):
            marks = load("cpu").index_lines(offsets, numbers, state, buffer[:size], index.comment_byte, EVERY)
            index.offsets.extend(offsets[:marks].tolist())
            index.numbers.extend(numbers[:marks].tolist())
    if not index.offsets:
        raise DataError(f"{path}: the file holds only blank lines")
    return msgspec.structs.replace(index, count=int(state[0]), size=int(state[4]))


def read_lines(path: str, index: LineIndex, rows: Rows) -> Iterator[tuple[list[bytes], Ints]]:
    """Batches of lines and their line numbers; only the part of the file that the rows span is read."""
    for lines in read_text(path, index, rows):
        yield lines.split(), lines.numbers


def read_text(path: str, index: LineIndex, rows: Rows) -> Iterator[Lines]:
    """The lines of the rows (at least one), in chunks of some CHUNK_BYTES; a chunk without any is not read."""
    low, high = span(rows)
    mark, last = low // EVERY, (high - 1) // EVERY
    with reading(path), open(path, "rb") as file:
        while mark <= last:
            after = _marks_at_once(index, mark, last)
            own = rows_between(rows, mark * EVERY, after * EVERY)
            if len(own):
                data = np.empty(_offset(index, after) - index.offsets[mark], np.uint8)
                file.seek(index.offsets[mark])
                data = data[: file.readinto(data.data)]
                yield _chosen(path, index, data, own, index.numbers[mark])
            mark = after


def _marks_at_once(index: LineIndex, mark: int, last: int) -> int:
    """One past the last mark whose lines are read with those of ``mark``: as many as CHUNK_BYTES hold."""
    limit = index.offsets[mark] + CHUNK_BYTES
    after = mark + 1
    while after <= last and _offset(index, after + 1) <= limit:
        after += 1
    return after


def _offset(index: LineIndex, mark: int) -> int:
    return index.offsets[mark] if mark < len(index.offsets) else index.size


def _chosen(path: str, index: LineIndex, data: Array, rows: Rows, first_number: int) -> Lines:
    """Those lines of the data, by number among those with content."""
    from hpcps_kernels import load

    kernels = load("cpu")
    high = span(rows)[1]
    begins, ends, numbers = (np.empty(high, np.int64) for _ in range(3))
    if kernels.find_lines(begins, ends, numbers, data, index.comment_byte) < high:
        raise DataError(f"{path}: the file became shorter while it was read")
    chosen = slice(rows.start, rows.stop) if isinstance(rows, range) else rows
    begins, ends, numbers = begins[chosen], ends[chosen], numbers[chosen]
    size = int((ends - begins).sum())
    if size == ends[-1] - begins[0]:
        return Lines(data[begins[0] : ends[-1]], numbers + first_number)
    text = np.empty(size, np.uint8)
    kernels.join_spans(text, data, np.ascontiguousarray(begins), np.ascontiguousarray(ends))
    return Lines(text, numbers + first_number)
