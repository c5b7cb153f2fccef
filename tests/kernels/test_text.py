"""Lines of text, and libsvm: what is accepted, what is refused and where, and how exact the numbers are."""

from __future__ import annotations

import csv
import math
import struct
from itertools import pairwise

import numpy as np
import pytest
from hpcps_kernels import Kernels, ParseError, SparseRows, load
from hypothesis import given, settings
from hypothesis import strategies as st

REFERENCE, CPU = load("reference"), load("cpu")
BACK_ENDS = [pytest.param(REFERENCE, id="reference"), pytest.param(CPU, id="cpu")]
LABEL, ENTRY, RANGE, ORDER, VALUE = range(1, 6)


def parse(kernels: Kernels, text: str | bytes, **options) -> SparseRows:
    data = text.encode() if isinstance(text, str) else text
    return kernels.parse_libsvm(np.frombuffer(data, np.uint8), **options)


def same(a: SparseRows, b: SparseRows) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y, strict=True)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_file_with_everything_in_it(kernels: Kernels, dtype) -> None:
    text = (
        "# a comment: 1:2\r\n+1 1:0.5 3:-2e-3\t7:+4.\r\n\n  \t\n-1.5 qid:12 2:.25 # 9:9\n3\n"
        "nan 1:inf 2:-INF 3:NaN 4:Infinity 2147483647:1E2"
    )
    rows = parse(kernels, text, dtype=dtype)
    np.testing.assert_array_equal(rows.labels, [1, -1.5, 3, np.nan])
    assert rows.indptr.tolist() == [0, 3, 4, 4, 9]
    assert rows.indices.tolist() == [0, 2, 6, 1, 0, 1, 2, 3, 2147483646]
    wanted = np.array([0.5, -2e-3, 4, 0.25, np.inf, -np.inf, np.nan, np.inf, 100], dtype)
    np.testing.assert_array_equal(rows.values, wanted, strict=True)
    assert [a.dtype for a in rows[:3]] == [np.float64, np.int64, np.int32]


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("text", ["", "\n", "#", " \r\n\n# 1 2:3"])
def test_no_samples(kernels: Kernels, text: str) -> None:
    rows = parse(kernels, text)
    assert [len(a) for a in rows] == [0, 1, 0, 0]
    assert rows.indptr[0] == 0


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_indices_may_count_from_zero(kernels: Kernels) -> None:
    assert parse(kernels, "1 0:5 3:6 2147483647:1", zero_based=True).indices.tolist() == [0, 3, 2147483647]
    with pytest.raises(ParseError, match="line 1, column 3: the index is outside 1 "):
        parse(kernels, "1 0:5 3:6")
    assert parse(kernels, "1 1:5 2147483648:6").indices.tolist() == [0, 2147483647]


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize(
    ("text", "column", "kind"),
    [
        ("1:2 3:4", 1, LABEL),
        ("  one 1:2", 3, LABEL),
        ("1,2 1:2", 1, LABEL),
        ("- 1:2", 1, LABEL),
        ("1 2", 3, ENTRY),
        ("1 :2", 3, ENTRY),
        ("1 x:2", 3, ENTRY),
        ("1 -3:2", 3, ENTRY),
        ("1 1.5:2", 3, ENTRY),
        ("1 1: 2", 3, VALUE),
        ("1 1:2 \t 2147483649:2", 9, RANGE),
        ("1 99999999999999999999999:2", 3, RANGE),
        ("1 2:1 2:1", 7, ORDER),
        ("1 2:1 1:1", 7, ORDER),
        ("1 3:", 3, VALUE),
        ("1 3:#", 3, VALUE),
        *((f"1 3:{bad}", 3, VALUE) for bad in ("x", ".", "+", "1e", "1e+", "e5", "1.2.3", "--1", "in", "nano")),
        *((f"1 3:{bad}", 3, VALUE) for bad in (".inf", "0x1", "1_0", "infinit", "1f", "٣", "\0", "1:2")),
    ],
)
def test_a_fault_is_placed(kernels: Kernels, text: str, column: int, kind: int) -> None:
    for before, after, line in (("", "", 1), ("0 1:1\n\n", "\n!", 3), ("#\r\n", "\r\n", 2)):
        with pytest.raises(ParseError) as caught:
            parse(kernels, before + text + after)
        error = caught.value
        assert (error.line, error.column, error.kind) == (line, column, kind)
        assert str(error) == f"line {line}, column {column}: {error.reason}"


def ulps(x: float, y: float) -> int:
    """How many float64 lie between two of the same sign."""
    a, b = (struct.unpack("<q", struct.pack("<d", abs(v)))[0] for v in (x, y))
    assert math.copysign(1, x) == math.copysign(1, y)
    return abs(a - b)


HARD = [
    "0", "-0", "0e999999999999", "1e22", "1e23", "9007199254740993", "123456789012345678901234567890e-10",
    "1.7976931348623157e308", "1.7976931348623159e308", "2.2250738585072011e-308", "5e-324", "2e-324", "1e-400",
    "1e400", "0." + "0" * 400 + "1e401", "1" + "0" * 400 + "e-400", "8.5e-309", "0.1e-345", "99e306",
]  # fmt: skip


@pytest.mark.parametrize("text", HARD)
def test_hard_numbers_are_within_one_ulp(text: str) -> None:
    got = parse(CPU, f"{text} 1:{text}", dtype=np.float64)
    assert ulps(float(got.labels[0]), float(text)) <= 1
    assert got.values[0].tobytes() == got.labels[0].tobytes()


def test_random_numbers_are_almost_always_the_nearest() -> None:
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 0x7FEF_FFFF_FFFF_FFFF, 5000)
    texts = [repr(x) for x in bits.view(np.float64).tolist()]
    texts += [f"{m}e{e}" for m, e in zip(bits.tolist(), rng.integers(-340, 290, 5000).tolist(), strict=True)]
    got = parse(CPU, "\n".join(texts)).labels.tolist()
    apart = [ulps(g, float(t)) for g, t in zip(got, texts, strict=True)]
    assert max(apart) <= 1
    assert sum(apart) <= 5


def outcome(kernels: Kernels, text: str, zero_based: bool) -> SparseRows | str:
    try:
        return parse(kernels, text, zero_based=zero_based)
    except ParseError as error:
        return str(error)


FRAGMENTS = st.lists(
    st.sampled_from([*"0123456789:#+-.e \t\r\nx", " 1:2", " 2:0.5", "\n1 ", "qid:1 ", "nan", "inf", "2147483648:"]),
    max_size=25,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(FRAGMENTS, st.booleans())
def test_twins_agree_on_any_text(fragments: list[str], zero_based: bool) -> None:
    text = "".join(fragments)
    wanted, got = (outcome(kernels, text, zero_based) for kernels in (REFERENCE, CPU))
    if isinstance(wanted, str) or isinstance(got, str):
        assert got == wanted
    else:
        same(got, wanted)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_other_dtypes_are_refused(kernels: Kernels) -> None:
    with pytest.raises(TypeError, match="parse_libsvm: dtype must be float32 or float64, not int32"):
        parse(kernels, "1 1:2", dtype=np.int32)
    with pytest.raises(TypeError, match="parse_libsvm: data must be uint8, not float32"):
        kernels.parse_libsvm(np.ones(3, np.float32))


PLAIN = st.one_of(
    st.integers(0, 10**10).map(str),
    st.decimals(0, 10**9, places=9, allow_nan=False).map(str),
    st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)).map(lambda pair: f"{pair[0]}.{pair[1]}"),
    st.sampled_from(["", ".", "5.", ".5", "-.5", "-", "1e3", "00000001", "12345678.12345678", "1.2.3", "1:2"]),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(PLAIN, st.sampled_from(["", "-", "+"]), PLAIN), max_size=4),
    st.sampled_from(["", " ", "#x", "\r\n"]),
)
def test_twins_agree_on_entries_with_and_without_room_behind_them(entries, end: str) -> None:
    text = "1" + "".join(f" {index}:{sign}{value}" for index, sign, value in entries) + end
    for room in ("", "\n" * 99):
        wanted, got = (outcome(kernels, text + room, True) for kernels in (REFERENCE, CPU))
        if isinstance(wanted, str) or isinstance(got, str):
            assert got == wanted
        else:
            same(got, wanted)


LINES = st.lists(
    st.sampled_from([b"\n", b"\r\n", b" ", b"\t", b"\v\f", b"#", b"# 1", b"x", b"1 2:3", b"y" * 63, b"y" * 200, b"\0"]),
    max_size=40,
).map(b"".join)


def content(text: bytes, comment: bytes) -> list[tuple[int, int, int]]:
    """Begin, end and number of the lines with content, as a reader of lines finds them."""
    found, at = [], 0
    for number, line in enumerate(text.split(b"\n")):
        if not ((line.partition(comment)[0] if comment else line) + b" ").isspace():
            found.append((at, min(at + len(line) + 1, len(text)), number))
        at += len(line) + 1
    return found


@pytest.mark.parametrize("kernels", BACK_ENDS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(LINES, st.sampled_from([b"", b"#"]), st.integers(1, 3), st.integers(1, 300))
def test_lines_are_indexed_wherever_chunks_are_cut(kernels: Kernels, text, comment, every, chunk) -> None:
    wanted = content(text, comment)
    state, marks = np.array([0, 1, 0, 0, 0, 0, 0, 0]), []
    data = np.frombuffer(text, np.uint8)
    for low in range(0, len(text), chunk):
        offsets, numbers = (np.full(chunk, 77) for _ in range(2))
        found = kernels.index_lines(
            offsets, numbers, state, data[low : low + chunk], comment[0] if comment else -1, every
        )
        marks += zip(offsets[:found].tolist(), numbers[:found].tolist(), strict=True)
        assert not offsets[found:].any()
        assert not numbers[found:].any()
    assert marks == [(begin, number + 1) for begin, _, number in wanted[::every]]
    assert state[[0, 4]].tolist() == [len(wanted), len(text)]


@pytest.mark.parametrize("kernels", BACK_ENDS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(LINES, st.sampled_from([b"", b"#"]), st.integers(-2, 1))
def test_lines_are_found_and_joined(kernels: Kernels, text, comment, more) -> None:
    wanted = content(text, comment)
    data = np.frombuffer(text, np.uint8)
    begins, ends, numbers = (np.full(max(len(wanted) + more, 0), 77) for _ in range(3))
    found = kernels.find_lines(begins, ends, numbers, data, comment[0] if comment else -1)
    assert found == min(len(begins), len(wanted))
    got = list(zip(begins.tolist(), ends.tolist(), numbers.tolist(), strict=True))
    assert got == [*wanted[:found], *[(0, 0, 0)] * (len(begins) - found)]
    joined = b"".join(text[begin:end] for begin, end, _ in got)
    out = np.empty(len(joined), np.uint8)
    kernels.join_spans(out, data, begins, ends)
    assert out.tobytes() == joined


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_spans_and_marks_that_do_not_fit_are_refused(kernels: Kernels) -> None:
    data = np.arange(9, dtype=np.uint8)
    for begin, end in ((-1, 3), (3, 2), (7, 10)):
        with pytest.raises(IndexError, match="join_spans: a span is outside the text"):
            kernels.join_spans(np.empty(3, np.uint8), data, np.array([0, begin]), np.array([2, end]))
    for size in (0, 3, 5):
        with pytest.raises(ValueError, match="join_spans: the spans do not fill out exactly"):
            kernels.join_spans(np.empty(size, np.uint8), data, np.array([1, 7]), np.array([3, 9]))
    state = np.array([0, 1, 0, 0, 0, 0, 0, 0])
    for every, message in ((1, "more marks"), (0, "every must be at least 1")):
        with pytest.raises(ValueError, match=f"index_lines: {message}"):
            kernels.index_lines(
                np.empty(1, np.int64), np.empty(1, np.int64), state, np.frombuffer(b"a\nb", np.uint8), -1, every
            )
        assert state.tolist() == [0, 1, 0, 0, 0, 0, 0, 0]


FIELDS = st.lists(st.text('ab ,"\r;x', max_size=6), min_size=1, max_size=4)


def fields_of(kernels: Kernels, data: bytes, columns: int, lines: int, mark: str = ",") -> list[bytes] | int:
    text, offsets = np.full(len(data), 77, np.uint8), np.full(lines * columns + 1, 77)
    wrong = kernels.split_fields(text, offsets, np.frombuffer(data, np.uint8), ord(mark), columns)
    if wrong:
        return wrong
    assert not text[offsets[-1] :].any()
    return [text[low:high].tobytes() for low, high in pairwise(offsets)]


@pytest.mark.parametrize("kernels", BACK_ENDS)
@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(FIELDS, min_size=1, max_size=4), st.sampled_from([",", ";"]), st.booleans())
def test_fields_are_those_of_the_csv_module(kernels: Kernels, rows, mark: str, ended: bool) -> None:
    lines = [mark.join(row).rstrip("\r") for row in rows]
    wanted = [next(csv.reader([line.replace("\r", "\v")], delimiter=mark), [""]) for line in lines]
    columns = len(wanted[0])
    data = "\r\n".join(lines) + "\n" * ended
    if not all(lines):  # blank lines are left out before
        return
    got = fields_of(kernels, data.encode(), columns, len(lines), mark)
    ragged = next((number for number, row in enumerate(wanted, 1) if len(row) != columns), 0)
    assert got == (ragged or [field.replace("\v", "\r").encode() for row in wanted for field in row])


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_fields_for_which_there_is_no_room_are_refused(kernels: Kernels) -> None:
    assert fields_of(kernels, b"", 2, 0) == []
    assert fields_of(kernels, b'"a""b"c,\n,"x', 2, 2) == [b'a"bc', b"", b"", b"x"]
    for lines in (1, 3):
        with pytest.raises(ValueError, match="split_fields: offsets must have one more than lines"):
            fields_of(kernels, b"1,2\n3,4\n", 2, lines)
