"""Lines of text, and libsvm text to sparse rows in two compiled passes: one counts line ends and colons, one reads."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike

from hpcps_kernels.cpu._bytes import find_byte, leading_digits
from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.interface import Array, ParseError, SparseRows

BAD_LABEL, BAD_ENTRY, INDEX_RANGE, INDEX_ORDER, BAD_VALUE = range(1, 6)
INT32_MAX = 2**31 - 1
NEWLINE, RETURN, QUOTE, HASH, COLON, PLUS, MINUS, POINT, ZERO = (ord(c) for c in '\n\r"#:+-.0')
NAN, INFINITY = np.array([*b"nan"], np.uint8), np.array([*b"infinity"], np.uint8)
DIGITS_KEPT = 19  # as many as surely fit 64 bits
PLAIN_BYTES = 32  # 8 digits, a colon, a sign, 8 digits, a point, 8 digits and what ends it, rounded up
EXPONENT_CAP = 100_000
POWERS = 345  # beyond 10^±345 a mantissa of 19 digits is 0 or inf


def _powers_of_ten() -> tuple[Array, Array, Array]:
    """10^e for |e| <= POWERS as (high + low) * 2^exponent, 1 <= high < 2, to 120 bits."""
    high, low, exponents = [], [], []
    for e in range(-POWERS, POWERS + 1):
        power = 10 ** abs(e)
        exponent = power.bit_length() - 1 if e >= 0 else -power.bit_length()
        shift = 120 - exponent
        bits = (power << shift if shift >= 0 else power >> -shift) if e >= 0 else (1 << shift) // power
        leading = bits >> 68
        high.append(leading * 2.0**-52)
        low.append((bits - (leading << 68)) * 2.0**-120)
        exponents.append(exponent)
    return np.array(high), np.array(low), np.array(exponents, np.int64)


HIGH, LOW, EXPONENT = _powers_of_ten()
POWERS_OF_TEN = np.array([10**e for e in range(9)])
EXACT = np.array([10.0**e for e in range(23)])  # the powers of ten that float64 holds exactly


def parse_libsvm(data: Array, zero_based: bool = False, dtype: DTypeLike = np.float32) -> SparseRows:
    samples, entries = count_marks(data)
    labels, indptr = np.empty(samples), np.zeros(samples + 1, np.int64)
    indices, values = np.empty(entries, np.int32), np.empty(entries, dtype)
    found, line, column, kind = read_libsvm(labels, indptr, indices, values, data, 0 if zero_based else 1)
    if kind:
        raise ParseError(line, column, kind)
    used = indptr[found]
    return SparseRows(labels[:found], indptr[: found + 1], indices[:used], values[:used])


@kernel
def count_marks(data: Array) -> tuple[int, int]:
    """No fewer than the samples and the entries in data."""
    lines, colons = 1, 0
    for byte in data:
        lines += byte == NEWLINE
        colons += byte == COLON
    return lines, colons


@kernel
def read_libsvm(
    labels: Array, indptr: Array, indices: Array, values: Array, data: Array, base: int
) -> tuple[int, int, int, int]:
    """Fill the arrays; (samples, 0, 0, 0), or (samples, line, column, kind) of the first fault."""
    samples, entries, line, at = 0, 0, 0, 0
    while at < data.shape[0]:
        line, begin, last, labelled = line + 1, at, -1, False
        while True:
            at = _skip_blanks(data, at)
            if labelled:
                end, index, value = _plain_entry(data, at, base)
                if end > at and index > last:
                    indices[entries], values[entries] = index, value
                    entries, last, at = entries + 1, index, end
                    continue
            start, end = at, _token_end(data, at)
            if start == end:
                break
            at = end
            if not labelled:
                ok, label = _number(data, start, end)
                if not ok:
                    return samples, line, start - begin + 1, BAD_LABEL
                labelled, labels[samples] = True, label
            elif not _is_qid(data, start, end):
                kind, last, value = _entry(data, start, end, base, last)
                if kind:
                    return samples, line, start - begin + 1, kind
                indices[entries], values[entries] = last, value
                entries += 1
        if labelled:
            samples += 1
            indptr[samples] = entries
        at = find_byte(data, end, NEWLINE) + 1
    return samples, 0, 0, 0


@part
def _skip_blanks(data: Array, at: int) -> int:
    while at < data.shape[0] and _is_blank(data[at]):
        at += 1
    return at


@part
def _token_end(data: Array, at: int) -> int:
    while at < data.shape[0] and _is_in_token(data[at]):
        at += 1
    return at


@part
def _is_in_token(byte: int) -> bool:
    return byte != NEWLINE and byte != HASH and not _is_blank(byte)


@part
def _is_blank(byte: int) -> bool:
    return byte == 32 or byte == 9 or byte == 13 or byte == 11 or byte == 12


@part
def _is_qid(data: Array, start: int, end: int) -> bool:
    return (
        end - start >= 4
        and data[start] == 113  # q
        and data[start + 1] == 105  # i
        and data[start + 2] == 100  # d
        and data[start + 3] == COLON
    )


@part
def _entry(data: Array, start: int, end: int, base: int, last: int) -> tuple[int, int, float]:
    """(kind of what is wrong, index from 0, value) of INDEX:VALUE."""
    at, index = start, 0
    while at < end and _is_digit(data[at]):
        index = min(index * 10 + int(data[at] - ZERO), 2 * INT32_MAX)
        at += 1
    if at in (start, end) or data[at] != COLON:
        return BAD_ENTRY, last, 0.0
    index -= base
    if index < 0 or index > INT32_MAX:
        return INDEX_RANGE, last, 0.0
    if index <= last:
        return INDEX_ORDER, last, 0.0
    ok, value = _number(data, at + 1, end)
    return 0 if ok else BAD_VALUE, index, value


@part
def _plain_entry(data: Array, start: int, base: int) -> tuple[int, int, float]:
    """(end, index, value) of an entry like 17:3 or 17:-0.25; end is `start` where it is of another form.

    What most text consists of, in numbers of up to 8 digits on either side. Reads up to PLAIN_BYTES, and has no
    branch that digits could mislead. A mantissa of 15 digits is divided exactly as `_scaled` would.
    """
    if start + PLAIN_BYTES > data.shape[0]:
        return start, 0, 0.0
    length, index = leading_digits(data, start)
    colon = start + length
    negative = data[colon + 1] == MINUS
    first = colon + 1 + negative
    whole, mantissa = leading_digits(data, first)
    end, places = first + whole, 0
    if data[end] == POINT:
        places, fraction = leading_digits(data, end + 1)
        mantissa = mantissa * POWERS_OF_TEN[places] + fraction
        end += 1 + places
    is_plain = length > 0 and data[colon] == COLON and 0 < whole + places <= 15 and not _is_in_token(data[end])
    value = np.float64(mantissa) / EXACT[places]
    return end if is_plain else start, index - base, -value if negative else value


@part
def _is_digit(byte: int) -> bool:
    return byte >= ZERO and byte <= ZERO + 9


@part
def _number(data: Array, start: int, end: int) -> tuple[bool, float]:
    """Whether data[start:end] is a number, and which."""
    at = start
    negative = at < end and data[at] == MINUS
    if at < end and (data[at] == MINUS or data[at] == PLUS):
        at += 1
    mantissa, exponent, kept, digits, fraction = np.uint64(0), 0, 0, 0, False
    while at < end and (_is_digit(data[at]) or (data[at] == POINT and not fraction)):
        if data[at] == POINT:
            fraction = True
        else:
            digits += 1
            if kept < DIGITS_KEPT:
                mantissa = mantissa * np.uint64(10) + np.uint64(data[at] - ZERO)
                kept += int(mantissa > 0)
                exponent -= fraction
            else:
                exponent += not fraction
        at += 1
    if digits == 0:
        ok, value = _word(data, at, end)
        return ok and not fraction, -value if negative else value
    if at < end and data[at] | 32 == 101:  # e
        ok, shift = _exponent(data, at + 1, end)
        if not ok:
            return False, 0.0
        at, exponent = end, exponent + shift
    value = _scaled(mantissa, exponent)
    return at == end, -value if negative else value


@part
def _exponent(data: Array, at: int, end: int) -> tuple[bool, int]:
    negative = at < end and data[at] == MINUS
    if at < end and (data[at] == MINUS or data[at] == PLUS):
        at += 1
    value, start = 0, at
    while at < end and _is_digit(data[at]):
        value = min(value * 10 + int(data[at] - ZERO), EXPONENT_CAP)
        at += 1
    return at == end and at > start, -value if negative else value


@part
def _word(data: Array, at: int, end: int) -> tuple[bool, float]:
    """inf, infinity or nan, in any case."""
    if end - at == 3 and _spells(data, at, NAN):
        return True, math.nan
    return (end - at == 3 or end - at == 8) and _spells(data, at, INFINITY[: end - at]), math.inf


@part
def _spells(data: Array, at: int, word: Array) -> bool:
    same = True
    for i in range(word.shape[0]):
        same &= data[at + i] | 32 == word[i]
    return same


@part
def _scaled(mantissa: int, exponent: int) -> float:
    """mantissa * 10^exponent: the nearest float64 in the fast case, else within 1 ulp (0.51 if normal)."""
    if mantissa == 0 or exponent < -POWERS:
        return 0.0
    if exponent > POWERS:
        return math.inf
    if mantissa < 2**53 and -22 <= exponent <= 22:
        exact = np.float64(mantissa)
        return float(exact * EXACT[exponent] if exponent >= 0 else exact / EXACT[-exponent])
    # (m1 + m2) * (high + low) with an error term of about 2^-104 (Dekker 1971), then scaled by a power of
    # two.
    lower = mantissa & np.uint64(2047)
    m1, m2 = np.float64(mantissa - lower), np.float64(lower)
    high, low = HIGH[exponent + POWERS], LOW[exponent + POWERS]
    product = m1 * high
    rest = _product_error(m1, high, product) + (m1 * low + m2 * high)
    nearest: float = math.ldexp(product + rest, EXPONENT[exponent + POWERS])
    return nearest


@part
def _product_error(x: float, y: float, product: float) -> float:
    """x * y - product, exactly."""
    t = x * 134217729.0
    x1 = t - (t - x)
    u = y * 134217729.0
    y1 = u - (u - y)
    x2, y2 = x - x1, y - y1
    return ((x1 * y1 - product) + x1 * y2 + x2 * y1) + x2 * y2


@kernel
def index_lines(offsets: Array, numbers: Array, state: Array, data: Array, comment: int, every: int) -> int:
    if every < 1:
        raise ValueError("index_lines: every must be at least 1")
    count, line, begin, known, start = state[0], state[1], state[2], state[3], state[4]
    offsets[:] = 0
    numbers[:] = 0
    marks, at = 0, 0
    while True:
        if not known:
            at = _skip_blanks(data, at)
            if at < data.shape[0] and data[at] != NEWLINE:
                known = 1
                if data[at] != comment:
                    if count % every == 0:
                        if marks == offsets.shape[0]:
                            raise ValueError("index_lines: more marks than offsets can hold")
                        offsets[marks], numbers[marks] = begin, line
                        marks += 1
                    count += 1
        at = find_byte(data, at, NEWLINE)
        if at == data.shape[0]:
            break
        at += 1
        line, begin, known = line + 1, start + at, 0
    state[0], state[1], state[2], state[3], state[4] = count, line, begin, known, start + at
    return marks


@kernel
def find_lines(begins: Array, ends: Array, numbers: Array, data: Array, comment: int) -> int:
    begins[:] = 0
    ends[:] = 0
    numbers[:] = 0
    found, number, at = 0, 0, 0
    while at < data.shape[0] and found < begins.shape[0]:
        content = _skip_blanks(data, at)
        end = find_byte(data, content, NEWLINE)
        after = min(end + 1, data.shape[0])
        if content < end and data[content] != comment:
            begins[found], ends[found], numbers[found] = at, after, number
            found += 1
        number, at = number + 1, after
    return found


@kernel
def join_spans(out: Array, data: Array, begins: Array, ends: Array) -> None:
    total = 0
    for i in range(begins.shape[0]):
        if begins[i] < 0 or ends[i] < begins[i] or ends[i] > data.shape[0]:
            raise IndexError("join_spans: a span is outside the text")
        total += ends[i] - begins[i]
    if total != out.shape[0]:
        raise ValueError("join_spans: the spans do not fill out exactly")
    at = 0
    for i in range(begins.shape[0]):
        length = ends[i] - begins[i]
        out[at : at + length] = data[begins[i] : ends[i]]
        at += length


@kernel
def split_fields(text: Array, offsets: Array, data: Array, delimiter: int, columns: int) -> int:
    found, line, at, to = 0, 0, 0, 0
    offsets[:] = 0
    while at < data.shape[0]:
        line, after = line + 1, find_byte(data, at, NEWLINE)
        end, fields = after, 0
        while end > at and data[end - 1] == RETURN:
            end -= 1
        while True:
            at, to = _copy_field(text, to, data, at, end, delimiter)
            fields, found = fields + 1, found + 1
            if fields > columns:
                return line
            if found >= offsets.shape[0]:
                raise ValueError("split_fields: offsets must have one more than lines * columns")
            offsets[found] = to
            if at == end:
                break
            at += 1
        if fields != columns:
            return line
        at = after + 1
    if found + 1 != offsets.shape[0]:
        raise ValueError("split_fields: offsets must have one more than lines * columns")
    text[to:] = 0
    return 0


@part
def _copy_field(text: Array, to: int, data: Array, at: int, end: int, delimiter: int) -> tuple[int, int]:
    """Where the field ends, at its delimiter or the line's end, and where its text does."""
    if at < end and data[at] == QUOTE:
        at += 1
        while at < end and (data[at] != QUOTE or (at + 1 < end and data[at + 1] == QUOTE)):
            text[to] = data[at]
            at, to = at + 1 + (data[at] == QUOTE), to + 1
        at = min(at + 1, end)
    while at < end and data[at] != delimiter:
        text[to] = data[at]
        at, to = at + 1, to + 1
    return at, to
