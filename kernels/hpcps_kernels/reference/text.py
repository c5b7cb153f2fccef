"""libsvm text (`LABEL INDEX:VALUE INDEX:VALUE … # comment`, a sample a line) to sparse rows.

Blank lines and `qid:` tokens are skipped. A token is a run of bytes with no blank in it; an error names the
column at which its token starts. Numbers are decimal, with sign, fraction and exponent, or inf, infinity, nan
in any case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import DTypeLike

from hpcps_kernels.interface import Array, ParseError, SparseRows

BAD_LABEL, BAD_ENTRY, INDEX_RANGE, INDEX_ORDER, BAD_VALUE = range(1, 6)
INT32_MAX = 2**31 - 1
_TOKEN = re.compile(rb"[^ \t\r\v\f]+")
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
