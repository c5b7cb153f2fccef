"""Text tables: headers, delimiters, label columns, blank lines, line ends."""

from __future__ import annotations

import numpy as np
import pytest

from hpcps.data.csv import delimiter_of, is_header
from hpcps.data.lines import EVERY, index_lines, read_lines
from hpcps.errors import ConfigError

SAMPLES = np.array([[1.5, -2], [0, 4], [1e-3, 7], [8, 9]], np.float32)
LABELS = np.array([0, 1, 1, 0])


def table(mark=",", header="", label=2, end="\n"):
    rows = [header] if header else []
    for sample, number in zip(SAMPLES, LABELS, strict=True):
        fields = [f"{x:g}" for x in sample]
        fields.insert(label, str(number))
        rows.append(mark.join(fields))
    return end.join(rows) + end


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["", "a{0}b{0}c", '"a"{0}"b{0}"{0}"c"', "a{0}1{0}label", "\ufeffa{0}b{0}c"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_headers_delimiters_and_line_ends(mark, header, end, tmp_path, load, joined):
    path = tmp_path / "t.csv"
    path.write_text(table(mark, header.format(mark), end=end), newline="", encoding="utf-8")
    sets = load(path, 3)
    np.testing.assert_array_equal(joined(sets)[0], SAMPLES)
    np.testing.assert_array_equal(joined(sets)[1], LABELS)
    assert sets[0].train[0].where(0) == f"{path}: line {2 if header else 1}" if sets[0].train else True


@pytest.mark.parametrize(
    ("header", "label", "column"),
    [
        ("", 2, "auto"),
        ("", 0, "0"),
        ("", 1, "-2"),
        ("a,b,c", 2, "auto"),
        ("Label,a,b", 0, "auto"),
        ("a,CLASS,b", 1, "auto"),
        ("y,a,b", 0, "auto"),
        ("target,a,b", 0, "auto"),
        ("a,b,y", 0, "0"),
        ("a,cat,b", 1, "cat"),
        ("a,cat,label", 1, "cat"),
        ("label,0,1", 0, "auto"),
        ("7,cat,8", 1, "cat"),
        ("x,y,label", 2, "auto"),
    ],
)
def test_label_column(header, label, column, tmp_path, load, joined):
    (tmp_path / "t.csv").write_text(table(header=header, label=label))
    samples, labels = joined(load(tmp_path / "t.csv", 2, label_column=column))
    np.testing.assert_array_equal(samples, SAMPLES)
    np.testing.assert_array_equal(labels, LABELS)


def test_label_column_that_is_not_there(tmp_path, load):
    (tmp_path / "t.csv").write_text(table())
    with pytest.raises(ConfigError, match=r"label_column = 'cat' is no column of .*t\.csv: it has no header"):
        load(tmp_path / "t.csv", 2, label_column="cat")
    with pytest.raises(ConfigError, match=r"label_column = 3 is no column of .*t\.csv, which has 3"):
        load(tmp_path / "t.csv", 2, label_column="3")
    with pytest.raises(ConfigError, match=r"label_column = -4 is no column"):
        load(tmp_path / "t.csv", 2, label_column="-4")
    (tmp_path / "t.csv").write_text(table(header="a,b,c"))
    with pytest.raises(ConfigError, match=r"'cat' is no column of .*: its columns are a, b, c"):
        load(tmp_path / "t.csv", 2, label_column="cat")


def test_blank_lines_spaces_and_quotes(tmp_path, load, joined):
    (tmp_path / "t.csv").write_text('\n 1.5, -2 ,0\n\n\r\n"0","4",1\n  \n1e-3,7,1\n8,+9.0,0')
    [one] = load(tmp_path / "t.csv")
    np.testing.assert_array_equal(joined([one])[0], SAMPLES)
    assert [one.train[n].where(0).split()[-1] for n in range(4)] == ["2", "5", "7", "8"]


def test_is_header():
    assert is_header(["a", "b"])
    assert is_header(["", "a"])
    assert is_header(["label", "0", "1"])
    assert not is_header(["1", "abc"])
    assert not is_header(["nan", "inf"])
    assert not is_header(["", ""])


def test_delimiter_of():
    assert delimiter_of("a;b,c") == ";"
    assert delimiter_of('"a;b",c') == ","
    assert delimiter_of("a b") == ","


@pytest.mark.parametrize("count", [1, EVERY - 1, EVERY, EVERY + 1, 5 * EVERY + 3])
def test_index_finds_any_line(count, tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("".join(f"{i}\n" + "\n" * (i % 3 == 0) for i in range(count)))
    index = index_lines(str(path))
    assert index.count == count
    assert len(index.offsets) == -(-count // EVERY)
    physical = [i + 1 + (i + 2) // 3 for i in range(count)]
    for rows in (range(count), range(count - 1, count), range(count // 2, count), np.arange(0, count, 7)):
        got = [pair for batch in read_lines(str(path), index, rows) for pair in zip(*batch, strict=True)]
        assert [int(line) for line, _ in got] == list(rows)
        assert [number for _, number in got] == [physical[i] for i in rows]


def test_large_table_over_ranks(tmp_path, load, joined):
    samples = np.arange(9001 * 2, dtype=np.float32).reshape(-1, 2)
    lines = "".join(f"{a:g},{b:.9g},{i % 3}\n" for i, (a, b) in enumerate(samples))
    (tmp_path / "t.csv").write_text(lines)
    for ranks in (1, 3):
        np.testing.assert_array_equal(joined(load(tmp_path / "t.csv", ranks))[0], samples)
