"""Benches run and keep their promises; what they measure here means nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcps import starter

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench" / "allreduce.py"
TIMEOUT_S = 200
KEYS = {"case", "size", "count", "dtype", "ranks", "calls", "median_s", "p99_s", "algbw", "busbw", "wrong"}

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module", autouse=True)
def _library():
    if starter.find() is None:
        pytest.skip("mpi4py finds no MPI library")


def bench(*words):
    command = [sys.executable, str(BENCH), "--rounds", "1", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def test_hpcps_beside_a_memcpy(tmp_path):
    done = bench("--sizes", "4K-16K", "--only", "hpcps,memcpy", "--json", str(tmp_path / "a.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "a.json").read_text())
    assert {"machine", "versions", "commit", "rows", "ranks", "rounds", "summary"} <= set(told)
    rows = told["rows"]
    sizes = [4096, 8192, 16384]
    cases = ["hpcps", "hpcps, plain arrays", "memcpy"]
    assert [(row["case"], row["size"]) for row in rows] == [(case, size) for case in cases for size in sizes]
    for row in rows:
        assert set(row) >= KEYS
        assert (row["wrong"], row["ranks"], row["count"] * 4) == (0, 2, row["size"])
        assert 0 < row["median_s"] <= row["p99_s"]
        assert row["busbw"] == pytest.approx(row["size"] / row["median_s"] / 1e9)
    limits = {row["size"]: row["median_s"] for row in rows if row["case"] == "memcpy"}
    for row in rows[:6]:
        assert row["limit"] == "memcpy"
        assert row["fraction"] == pytest.approx(limits[row["size"]] / row["median_s"])


def test_a_missing_peer_is_a_row_that_says_why(tmp_path):
    words = ["--torch-python", "/no/such/python", "--only", "memcpy,gloo", "--json", str(tmp_path / "a.json")]
    done = bench("--sizes", "4K", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = [row for row in json.loads((tmp_path / "a.json").read_text())["rows"] if row["case"] == "gloo"]
    assert row["size"] is None
    assert "/no/such/python" in row["missing"]
    assert f"gloo: missing: {row['missing']}" in done.stdout


def test_wrong_elements_are_counted(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH.parent / "peers"))
    import allreduce_rank as rank

    total = rank.TILE * 3 + 3
    x = rank.aligned(10_000, "float32")
    rank.fill(x, total)
    assert (x == [total[i % len(total)] for i in range(10_000)]).all()
    assert rank.wrong(x, total) == 0
    x[[5, 9_999]] += 1
    assert rank.wrong(x, total) == 2


def test_pushes_and_pulls_beside_plain_messages(tmp_path):
    words = ["--sizes", "1024,100000", "--widths", "3", "--rounds", "1", "--json", str(tmp_path / "a.json")]
    command = [sys.executable, str(BENCH.with_name("server.py")), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    dense = ["push and pull", "push and pull, by messages", "mpi4py Send and Recv"]
    ways = ("3 wide", "3 wide, by messages")
    sparse = [(f"sparse {what}, {way}", 200_000) for way in ways for what in ("push", "pull", "push of new rows")]
    assert [(row["case"], row["size"]) for row in rows] == [
        (case, n) for case in dense for n in (1024, 100_000)
    ] + sparse
    for row in rows:
        assert row["wrong"] == 0
        assert 0 < row["min_s"] <= row["median_s"] <= row["p99_s"]
    assert all("peer_s" in row for row in rows[:4])
    assert "ps_lite_earlier_s" in rows[0]


def test_parameters_that_other_ranks_read_have_the_same_bits_by_both_ways():
    line = starter.command_line(starter.find(), 3)
    command = [*line, sys.executable, str(BENCH.with_name("published.py")), "--inputs", "160", "--units", "211"]
    environment = starter.environment(os.environ, 3)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wrong: 0" in done.stdout
    assert done.stdout.count(" us |") == 10
