"""The benches of the parameter server run and keep their promises; what they measure here means nothing."""

import json
import subprocess
import sys
from pathlib import Path

import hosts
import pytest
import stragglers

from hpcps import starter

BENCH = Path(__file__).parents[1] / "bench"
TIMEOUT_S = 250

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module", autouse=True)
def _library():
    if starter.find() is None:
        pytest.skip("mpi4py finds no MPI library")


def bench(path, *words):
    command = [sys.executable, str(BENCH / words[0]), *words[1:], "--rounds", "1", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(path.read_text())
    assert {"machine", "versions", "commit", "rows", "load_average"} <= set(told)
    return told["rows"], done.stdout


def test_stragglers(tmp_path):
    if not Path(stragglers.DATA).is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    words = ["--kinds", "persistent,transient", "--staleness", "0,2,async", "--target", "2.2"]
    rows, table = bench(tmp_path / "a.json", "stragglers.py", "--workers", "2", "--seconds", "1", *words)
    expected = [(kind, way) for kind in ("persistent", "transient") for way in (0, 2, "async", "backup 1")]
    assert [(row["case"], row["staleness"]) for row in rows] == expected
    for row in rows:
        assert row["wrong"] == 0
        assert 0 <= row["idle"] < 1
        assert (row["age"] == 0) == (row["staleness"] in (0, "backup 1"))
        assert (row["dropped"] > 0) == (row["staleness"] == "backup 1")
        assert len(row["curves"]) == 1
        assert f"| {row['case']} | {row['staleness']} |" in table


def test_when_a_loss_was_reached():
    times, losses = [0.0, 1.0, 2.0, 3.0], [2.0, 1.0, 0.5, 0.7]
    assert stragglers.reached(times, losses, 0.75) == pytest.approx(1.5)
    assert stragglers.reached(times, losses, 2.5) == 0
    assert stragglers.reached(times, losses, 0.1) is None
    assert stragglers.median_of([3.0, None, 1.0]) == 2
    assert stragglers.median_of([3.0, None, None]) is None


def test_ring_or_server(tmp_path):
    if reason := hosts.why_not():
        pytest.skip(f"no hosts: {reason}")
    words = ["--hosts", "2", "--models", "dense,logistic", "--ways", "ring,server alone", "--steps", "2"]
    rows, table = bench(tmp_path / "a.json", "ring_or_server.py", *words)
    expected = [(model, way) for model in ("dense", "logistic") for way in ("ring", "server alone")]
    assert [(row["model"], row["way"]) for row in rows] == expected
    for row in rows:
        assert (row["wrong"], row["hosts"], len(row["sent_by_host"])) == (0, 2, 2)
        assert row["median_s"] > 0
    assert rows[0]["sent"] == pytest.approx(4 << 20, rel=0.5)  # a host's share, twice, and the headers
    assert "| dense | 2 |" in table


def test_clicks(tmp_path):
    words = ["--rows", "3000", "--held-out", "500", "--batch", "500", "--rates", "0.1", "--no-peers"]
    rows, table = bench(tmp_path / "a.json", "clicks.py", *words, "--only", "thread")
    names = ["1 process, 1 thread", "1 process, 2 threads"]
    assert [row["case"] for row in rows] == [f"hpcps, {name}{how}" for how in ("", ", online") for name in names]
    for row in rows:
        assert row["rows_per_s"] > 0
        assert 0 < row["test_loss"] < 0.7
    assert "| hpcps, 1 process, 1 thread |" in table
