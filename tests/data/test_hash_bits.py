"""data.hash_bits: the columns of a table as hashed categories."""

from __future__ import annotations

import csv
import struct
from itertools import product

import numpy as np
import pytest
from hpcps_kernels.reference.hash import x64_128

import hpcps
from hpcps import inference
from hpcps.config import from_tree
from hpcps.data import Csr
from hpcps.errors import ConfigError, DataError

TABLE = 'color,"size, cm",label,note\nred,,1,"a ""b"""\r\nblue,4,0,\n"red",4 ,1, x\n,red,0,a\nétè,"4",1e0,"1,2"\n'


def key(field: str, column: int, bits: int) -> int:
    text = x64_128(field.encode(), 0)[0]
    return x64_128(struct.pack("<qQ", column, text), 0)[0] % 2**bits


def expected(text: str, bits: int, label: int, header: bool) -> list[list[int]]:
    rows = [next(csv.reader([line.rstrip("\r")])) for line in text.split("\n")[header:] if line]
    return [[key(field, n, bits) for n, field in enumerate(row) if n != label] for row in rows]


@pytest.mark.parametrize(("bits", "bom", "header"), [*product([8, 20], ["", "\ufeff"], [True, False]), (30, "", True)])
def test_each_field_is_one_entry(tmp_path, load, bits, bom, header) -> None:
    text = TABLE if header else TABLE.partition("\n")[2]
    (tmp_path / "t.csv").write_text(bom + text, newline="")
    ranks = load(tmp_path / "t.csv", 2, blocks=2, hash_bits=bits, label_column="2")
    blocks = [block for one in ranks for block in one.train.values()]
    assert all(isinstance(block.samples, Csr) and block.samples.features == 2**bits for block in blocks)
    got = [block.samples.indices.reshape(-1, 3).tolist() for block in blocks]
    assert got[0] + got[1] == expected(text, bits, 2, header)
    assert [label for block in blocks for label in block.labels.tolist()] == [1, 0, 1, 0, 1]
    assert all((block.samples.values == 1).all() for block in blocks)
    assert blocks[1].where(0) == f"{tmp_path}/t.csv: line {3 + header}"


@pytest.fixture
def table(tmp_path):
    """Labels that follow from two of three columns."""
    rng = np.random.default_rng(2)
    a, b, c = rng.integers(0, (5, 7, 400), (900, 3)).T
    rows = [f"{x:x}z;'{y}';{z};{int((x * y) % 3 > 0)}\n" for x, y, z in zip(a, b, c, strict=True)]
    path = tmp_path / "t.csv"
    path.write_text("first;second;third;label\n" + "".join(rows))
    return path


@pytest.mark.parametrize("window", [0, 64])
def test_a_run_trains_is_evaluated_and_predicts(table, tmp_path, window) -> None:
    tree = {
        "data": {"path": str(table), "hash_bits": 10, "window": window, "test_fraction": 0.2},
        "model": {"kind": "logistic"},
        "train": {"epochs": 3, "batch": 32, "reproducible": True, "grains": 4},
        "run": {"transport": "threads"},
    }
    runs = [hpcps.train(from_tree(tree), ranks=ranks, out=tmp_path / f"run{ranks}") for ranks in (1, 2)]
    assert runs[0].summary["params_sha256"] == runs[1].summary["params_sha256"]
    assert runs[0].summary["accuracy"] > 0.75
    assert inference.evaluate(runs[0].folder)["accuracy"] == pytest.approx(runs[0].summary["accuracy"])
    predicted = inference.predict(runs[0].folder, str(table))
    assert len(predicted) == 900
    assert set(predicted) <= {0, 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a;b;c", "line 12 has 3 columns instead of 4"),
        ("a;b;c;1;", "line 12 has 5 columns instead of 4"),
        ("a;b;c;yes", r"line 12, column 4 \(label\): 'yes' is not a number; labels must be numbers"),
        ("a;b;c;1_0", r"line 12, column 4 \(label\): '1_0' is not a number; labels must be numbers"),
        ("a;b;c;", r"line 12, column 4 \(label\): the field is empty"),
        ("a;b;c;inf", r"line 12, column 4 \(label\): inf is not a finite number"),
        ("a;b;c;0.5", "line 12: the label 0.5 is not a whole number"),
    ],
)
@pytest.mark.parametrize("window", [0, 100])
def test_faults_are_placed(table, load, line, message, window) -> None:
    lines = table.read_text().splitlines()
    lines[11] = line
    table.write_text("\n".join(lines))
    for ranks in (1, 3):
        with pytest.raises(DataError, match=message):
            load(table, ranks, hash_bits=12, window=window)


def test_what_does_not_fit(table, tmp_path, load, write) -> None:
    svm = write("libsvm", tmp_path, np.ones((5, 2)), np.arange(5))
    with pytest.raises(ConfigError, match=r"data\.hash_bits is for CSV; .*some\.libsvm is libsvm"):
        load(svm, 2, hash_bits=10)
    (tmp_path / "u.csv").write_text("a,b,1\n")
    with pytest.raises(DataError, match=r"u\.csv: 3 columns, but .*t\.csv has 4"):
        load(table, hash_bits=10, test=str(tmp_path / "u.csv"))
    (tmp_path / "v.csv").write_text("1\n0\n")
    with pytest.raises(DataError, match="one column only"):
        load(tmp_path / "v.csv", hash_bits=10)
    for bits in (3, 31, -1):
        with pytest.raises(ConfigError, match=r"data\.hash_bits"):
            from_tree({"data": {"path": "x", "hash_bits": bits}, "model": {"kind": "linear"}})
