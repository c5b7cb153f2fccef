"""A run that stands still ends, names who is missing, and leaves what each rank was doing."""

import os
import time

import pytest

from hpcps import cli, stall
from hpcps.comm import launcher
from hpcps.errors import CommTimeout

TIMEOUT_S = 0.5

OWN = """
import threading, time
import numpy as np

calls = 0
def sleeps(params, samples, labels):
    global calls
    calls += 1
    if threading.current_thread().name == "hpcps rank 1" and calls > 6:
        time.sleep(6)
    return 0.0, {"weight": np.zeros((10, 64)), "bias": np.zeros(10)}
"""


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for _, rank, size in launcher._VARIABLES:
        monkeypatch.delenv(rank, raising=False)
        monkeypatch.delenv(size, raising=False)


def train(capsys, folder, *settings, ranks=3):
    (folder / "own.py").write_text(OWN)
    config = folder / "own.toml"
    config.write_text(
        'data.path = "digits"\nmodel.kind = "own.py:sleeps"\nmodel.parameters = {weight=[10, 64], bias=[10]}\n'
    )
    settings = (f"run.timeout_s={TIMEOUT_S}", "run.transport=threads", "run.threads=1", *settings)
    words = [word for setting in settings for word in ("--set", setting)]
    started = time.monotonic()
    status = cli.main(["train", str(config), "--out", str(folder / "run"), "--ranks", str(ranks), *words])
    assert time.monotonic() - started < 60
    return status, capsys.readouterr().err


def reports(folder):
    return {path.name: path.read_text() for path in (folder / "run").glob("stall-*")}


@pytest.mark.parametrize("settings", [("train.strategy=ring",), ("train.strategy=server",), ("server.colocated=true",)])
def test_a_rank_that_sleeps_in_a_users_function(capsys, tmp_path, settings):
    settings += () if "train.strategy=ring" in settings else ("train.strategy=server",)
    status, err = train(capsys, tmp_path, *settings)
    assert status == 3, err
    (line,) = err.splitlines()
    assert f"waited {TIMEOUT_S} s" in line
    assert f"stacks: {tmp_path}/run/stall-rank-" in line
    found = reports(tmp_path)
    waiting = {"stall-rank-0.txt", "stall-rank-2.txt"}
    assert waiting <= set(found) <= waiting | {"stall-rank-1.txt"}
    for text in found.values():
        assert "own.py" in text
        assert "in sleeps" in text
        assert len(text) <= stall.MOST_CHARACTERS
    assert any("rank(s) 1" in text and "step " in text for text in found.values())
    assert not (tmp_path / "run" / "summary.json").exists()


def test_the_reports_of_an_earlier_run_are_taken_away(capsys, tmp_path):
    train(capsys, tmp_path)
    assert reports(tmp_path)
    config = tmp_path / "own.toml"
    config.write_text('data.path = "digits"\nmodel.kind = "softmax"\ntrain.epochs = 1\n')
    assert cli.main(["train", str(config), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert not reports(tmp_path)


def test_a_rank_writes_when_another_has(tmp_path):
    """And not for files that an earlier run has left, nor while its own steps go on."""
    (tmp_path / "stall-rank-0.txt").write_text("of an earlier run")
    with stall.watched(1, 2, 0.2) as watch:
        watch.begin(tmp_path)
        time.sleep(0.4)
        assert not (tmp_path / "stall-rank-1.txt").exists()
        os.utime(tmp_path / "stall-rank-0.txt", ns=(1, 1))
        deadline = time.monotonic() + 20
        while not (tmp_path / "stall-rank-1.txt").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    text = (tmp_path / "stall-rank-1.txt").read_text()
    assert "rank 1 is alive in step 1" in text
    assert "test_a_rank_writes_when_another_has" in text


def test_steps_that_go_on_are_no_stall(tmp_path):
    steps = iter(range(10**9))
    with stall.watched(1, 2, 0.2) as watch:
        watch.steps = lambda: next(steps)
        watch.begin(tmp_path)
        (tmp_path / "stall-rank-0.txt").write_text("of another rank")
        time.sleep(0.5)
    assert not (tmp_path / "stall-rank-1.txt").exists()


def fail(error, rank, folder):
    with stall.watched(rank, 4, 0.1) as watch:
        if folder is not None:
            watch.begin(folder)
        raise error


@pytest.mark.parametrize("has_folder", [False, True])
def test_without_a_folder_that_can_be_written_the_stacks_are_printed(tmp_path, capsys, has_folder):
    with pytest.raises(CommTimeout, match="too long; stacks: see above"):
        fail(CommTimeout("too long"), 3, tmp_path / "none" if has_folder else None)
    err = capsys.readouterr().err
    assert err.startswith("rank 3: too long\n")
    assert "test_stall.py" in err


def test_other_errors_are_left_alone(tmp_path):
    with pytest.raises(ValueError, match=r"^as it is$"):
        fail(ValueError("as it is"), 0, tmp_path)
    assert not list(tmp_path.iterdir())
