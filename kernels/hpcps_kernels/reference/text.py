"""Text in which a line is a sample: where lines begin, the fields of tables, and libsvm lines as sparse rows.

libsvm: `LABEL INDEX:VALUE INDEX:VALUE … # comment`. Blank lines and `qid:` tokens are skipped. A token is a run
of bytes with no blank in it; an error names the column at which its token starts. Numbers are decimal, with sign,
fraction and exponent, or inf, infinity, nan in any case.

A line has content unless it is blank or holds only blanks and a comment, which begins with the byte `comment`
(-1: there are no comments). Only a newline ends a line; a carriage return is a blank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import DTypeLike

from hpcps_kernels.interface import Array, ParseError, SparseRows

BAD_LABEL, BAD_ENTRY, INDEX_RANGE, INDEX_ORDER, BAD_VALUE = range(1, 6)
INT32_MAX = 2**31 - 1
NEWLINE, BLANKS = 10, b" \t\r\v\f"
_TOKEN = re.compile(rb"[^ \t\r\v\f]+")
_QUOTED = re.compile(rb'"((?:[^"]|"")*)(?:"|\Z)')
_NUMBER = re.compile(rb"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity|nan)", re.IGNORECASE)


def parse_libsvm(data: Array, zero_based: bool = False, dtype: DTypeLike = np.float32) -> SparseRows:
    """The samples of whole lines of libsvm text; data (bytes,) uint8, dtype the values', float32 or float64.

    Indices in the text count from 1, or from 0 where zero_based. Labels and values are the nearest float64
    (values are then rounded to dtype); other back ends may be 1 ulp of float64 away. Raises ParseError with
    the place.
    """
    labels: list[float] = []
    indptr, indices, values = [0], list[int](), list[float]()
    for number, line in enumerate(data.tobytes().split(b"\n"), start=1):
        tokens = list(_TOKEN.finditer(line.partition(b"#")[0]))
        if not tokens:
            continue
        if not _NUMBER.fullmatch(tokens[0][0]):
            raise ParseError(number, tokens[0].start() + 1, BAD_LABEL)
        labels.append(float(tokens[0][0]))
        for index, value in _entries(tokens[1:], number, 0 if zero_based else 1):
            indices.append(index)
            values.append(value)
        indptr.append(len(indices))
    return SparseRows(
        np.array(labels, np.float64),
        np.array(indptr, np.int64),
        np.array(indices, np.int32),
        _rounded(values, dtype),
    )


def _entries(tokens: list[re.Match[bytes]], line: int, base: int) -> Iterator[tuple[int, float]]:
    last = -1
    for token in tokens:
        if token[0].startswith(b"qid:"):
            continue
        index, kind = _index(token[0], base, last)
        value = token[0].partition(b":")[2]
        if not kind and not _NUMBER.fullmatch(value):
            kind = BAD_VALUE
        if kind:
            raise ParseError(line, token.start() + 1, kind)
        last = index
        yield index, float(value)


def _index(token: bytes, base: int, last: int) -> tuple[int, int]:
    """The 0-based index of an entry and the kind of what is wrong with it, 0 for nothing."""
    digits, colon, _ = token.partition(b":")
    if not colon or not digits.isdigit():
        return -1, BAD_ENTRY
    index = int(digits) - base
    if not 0 <= index <= INT32_MAX:
        return index, INDEX_RANGE
    return index, 0 if index > last else INDEX_ORDER


def _rounded(values: list[float], dtype: DTypeLike) -> Array:
    with np.errstate(over="ignore"):  # beyond float32 is inf, as IEEE 754 has it
        return np.array(values, np.float64).astype(dtype)


def index_lines(offsets: Array, numbers: Array, state: Array, data: Array, comment: int, every: int) -> int:
    """Mark every `every`-th line with content of a text that comes in chunks; gives the marks of this chunk.

    data (bytes,) uint8 is the next chunk, cut anywhere. offsets, numbers (k,) int64: where in the text each
    marked line begins, and its number from 1; the rest is 0. state (8,) int64 holds, from chunk to chunk: lines
    with content so far, the number of the line that is going on, where it begins, whether it is known to
    have content or none, where the next chunk begins; at first 0, 1, 0, 0, 0 (and zeros). Raises ValueError if there
    are more than k marks, or `every` is not positive; state is then as it was.
    """
    if every < 1:
        raise ValueError("index_lines: every must be at least 1")
    count, line, begin, known, at = (int(value) for value in state[:5])
    offsets[:], numbers[:], marks = 0, 0, 0
    for byte in data.tobytes():
        at += 1
        if byte == NEWLINE:
            line, begin, known = line + 1, at, 0
        elif not known and byte not in BLANKS:
            known = 1
            if byte != comment:
                if count % every == 0:
                    if marks == len(offsets):
                        raise ValueError("index_lines: more marks than offsets can hold")
                    offsets[marks], numbers[marks] = begin, line
                    marks += 1
                count += 1
    state[:5] = count, line, begin, known, at
    return marks


def find_lines(begins: Array, ends: Array, numbers: Array, data: Array, comment: int) -> int:
    """The first m lines with content of a text, data (bytes,) uint8; gives how many there are, at most m.

    begins, ends (m,) int64: line i is data[begins[i]:ends[i]], with its newline if it has one; numbers (m,) int64:
    how many newlines come before it. The rest is 0.
    """
    begins[:], ends[:], numbers[:], found, begin = 0, 0, 0, 0, 0
    for number, line in enumerate(data.tobytes().split(b"\n")):
        end = min(begin + len(line) + 1, len(data))
        content = line.lstrip(BLANKS)
        if content and content[0] != comment and found < len(begins):
            begins[found], ends[found], numbers[found] = begin, end, number
            found += 1
        begin = end
    return found


def join_spans(out: Array, data: Array, begins: Array, ends: Array) -> None:
    """out (n,) uint8 = data[begins[0]:ends[0]], data[begins[1]:ends[1]], … one behind the other.

    Raises IndexError for a span that is not in data, ValueError unless they fill out exactly; out then holds anything.
    """
    spans = list(zip(begins.tolist(), ends.tolist(), strict=True))
    if not all(0 <= begin <= end <= len(data) for begin, end in spans):
        raise IndexError("join_spans: a span is outside the text")
    if sum(end - begin for begin, end in spans) != len(out):
        raise ValueError("join_spans: the spans do not fill out exactly")
    if spans:
        np.concatenate([data[begin:end] for begin, end in spans], out=out)


def split_fields(text: Array, offsets: Array, data: Array, delimiter: int, columns: int) -> int:
    """The fields of whole lines, `columns` a line, without their quotes, one behind the other.

    data, text (bytes,) uint8; offsets (k+1,) int64 with k = lines * columns: field i is
    text[offsets[i]:offsets[i + 1]]; the rest of text is 0. Carriage returns that end a line are no part of it. A field
    that begins with a quote ends with the next single one, and two of them stand for one; what lies
    between it and the delimiter is kept. Gives 0, or the number from 1 of the first line with other than
    `columns` fields; text and offsets then hold anything. Raises ValueError if k is not lines * columns.
    """
    fields = list[bytes]()
    lines = data.tobytes().removesuffix(b"\n").split(b"\n") if len(data) else []
    for number, line in enumerate(lines, start=1):
        own = _fields(line.rstrip(b"\r"), bytes([delimiter]))
        if len(own) != columns:
            return number
        fields += own
    if len(fields) != len(offsets) - 1:
        raise ValueError("split_fields: offsets must have one more than lines * columns")
    offsets[:] = np.cumsum([0, *map(len, fields)])
    text[:] = np.frombuffer(b"".join(fields).ljust(len(text), b"\0"), np.uint8)
    return 0


def _fields(line: bytes, delimiter: bytes) -> list[bytes]:
    fields, at = [], 0
    while True:
        quoted = _QUOTED.match(line, at)
        at = quoted.end() if quoted else at
        end = line.find(delimiter, at)
        rest = line[at : end if end >= 0 else None]
        fields.append((quoted[1].replace(b'""', b'"') if quoted else b"") + rest)
        if end < 0:
            return fields
        at = end + 1
