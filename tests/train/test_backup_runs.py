"""Whole runs on threads whose steps go on without the latest workers: one of them is slowed."""

import json
import math
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

import hpcps
from hpcps import config
from hpcps.config import from_tree
from hpcps.errors import ConfigError
from hpcps.launch import with_backup_for
from hpcps.worker import Worker

EXAMPLES = Path(__file__).parents[2] / "examples"


def told(*settings, example="digits.toml"):
    return config.read(EXAMPLES / example, settings=["train.strategy=server", "train.backup=1", *settings])


def train(folder, *settings, ranks=4, example="digits.toml"):
    return hpcps.train(told(*settings, example=example), ranks=ranks, out=folder)


@pytest.fixture
def slowed(monkeypatch):
    """Rank 0 takes a step while rank 1 begins three, or as long as [seconds], which are returned and may be changed:
    before evaluations and reports the others wait."""
    gradients, seconds, begun = Worker.gradients, [0.03], Counter()

    def slow(self):
        name = threading.current_thread().name
        begun[name] += 1
        if name == "hpcps rank 0":
            enough, deadline = begun["hpcps rank 1"] + 3, time.monotonic() + seconds[0]
            while begun["hpcps rank 1"] < enough and time.monotonic() < deadline:
                time.sleep(0.0005)
        return gradients(self)

    monkeypatch.setattr(Worker, "gradients", slow)
    return seconds


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def position(checkpoint):
    return json.loads((checkpoint / "manifest.json").read_bytes())["manifest"]["position"]


def check(run, workers, backup=1):
    """What must be so whoever was late."""
    summary, shards = run.summary, run.summary["shards"]
    for shard in shards:
        assert shard["updates"] == summary["steps"]
        assert shard["staleness"] == {"0": (workers - backup) * summary["steps"]}
        assert sum(shard["dropped"]) + sum(shard["skipped"]) == backup * summary["steps"]
        assert shard["skipped"] == summary["skipped_steps"]
    assert summary["dropped_pushes"] == [sum(ones) for ones in zip(*(s["dropped"] for s in shards), strict=True)]
    lines = metrics(run.folder)
    for name in ("dropped_pushes", "skipped_steps"):
        assert summary[name] == [sum(ones) for ones in zip(*(line[name] for line in lines), strict=True)]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("server.count=2", "train.report_every=7"),
        ("server.count=2", "server.replicas=1", "checkpoint.every_steps=9"),
        ("compress.kind=topk", "compress.fraction=0.2"),
        ("optimizer.kind=sgd", "optimizer.clip_norm=1", "optimizer.learning_rate=1"),
    ],
)
def test_digits_are_learned_without_the_latest_worker(tmp_path, slowed, more):
    run = train(tmp_path / "run", "train.epochs=6", *more, ranks=5)
    assert run.summary["accuracy"] >= 0.9
    assert run.summary["backup"] == 1
    assert run.summary["skipped_steps"][0] > 0
    check(run, run.summary["workers"])


@pytest.mark.parametrize("more", [(), ("server.count=2", "compress.kind=int8"), ("server.evict_after=4",)])
@pytest.mark.parametrize("example", ["fm.toml", "embedding.toml"])
def test_tables_are_learned_without_the_latest_worker(tmp_path, slowed, example, more):
    run = train(tmp_path / "run", "train.epochs=8", *more, ranks=5, example=example)
    assert run.summary["accuracy"] >= 0.8
    assert run.summary["skipped_steps"][0] > 0
    check(run, run.summary["workers"])


def test_nobody_waits_for_two_of_four(tmp_path, slowed):
    check(train(tmp_path / "run", "train.backup=2", "train.epochs=3", ranks=5), 4, 2)


@pytest.mark.parametrize("later", ["train.backup=2", "train.backup=0"])
def test_losses_are_means_over_what_was_computed(tmp_path, slowed, later):
    """Nothing is learned, and all samples have the same loss; also after going on from a checkpoint between reports."""
    still = "optimizer.learning_rate=1e-12", "train.report_every=5", "train.epochs=4"
    run = train(tmp_path / "run", *still, "checkpoint.every_steps=8", "checkpoint.keep=99")
    for line in metrics(run.folder):
        assert line["loss"] == pytest.approx(math.log(10), rel=1e-6)
    assert run.summary["skipped_steps"][0] > 0
    before = len(run.folder.joinpath("metrics.jsonl").read_text().splitlines())
    for path in [run.folder / "summary.json", run.folder / "model.safetensors"]:
        path.unlink()
    positions = {path: position(path) for path in (run.folder / "checkpoint").iterdir()}
    begin = next(path for path, one in positions.items() if one["left_out"])
    for path in positions:
        if path.name > begin.name:
            shutil.rmtree(path)
    again = train(run.folder, *still, later, ranks=5)
    assert again.summary["resumed_from"] == [positions[begin]["steps"]]
    lines = metrics(run.folder)
    assert len(lines) == before
    for line in lines:
        assert line["loss"] == pytest.approx(math.log(10), rel=1e-6)


@pytest.mark.parametrize("more", [("server.count=2",), ("train.backup=2", "train.report_every=6")])
@pytest.mark.parametrize("example", ["digits.toml", "fm.toml"])
def test_a_recorded_run_is_repeated_to_the_last_bit(tmp_path, slowed, example, more):
    settings = ["train.epochs=2", "run.threads=1", *more]
    first = train(tmp_path / "first", *settings, "server.record=true", ranks=5, example=example)
    slowed[0] = 0.0
    again = train(tmp_path / "again", *settings, f"server.replay={first.folder}", ranks=5, example=example)
    assert sum(first.summary["dropped_pushes"] + first.summary["skipped_steps"]) > 0
    for name in ("params_sha256", "loss", "test_loss", "dropped_pushes", "skipped_steps"):
        assert first.summary[name] == again.summary[name]


def test_as_many_backup_workers_as_workers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.backup = 2 with 2 workers: a step needs a gradient; use at most 1"):
        train(tmp_path / "run", "train.backup=2", ranks=3)
    with pytest.raises(ConfigError, match=r"train\.backup = 1 with 1 worker: .*; use 0, or more ranks"):
        train(tmp_path / "run", ranks=2)


def test_those_who_are_left_of_a_job_wait_for_one_worker_at_least():
    settings = "server.count=2", "train.backup=3"
    assert [with_backup_for(told(*settings), ranks).train.backup for ranks in (9, 6, 5, 4, 3)] == [3, 3, 2, 1, 0]


OWN = """
import threading
from pathlib import Path

MARK = Path(__file__).with_name("failed")
calls = threading.local()


def f(params, samples, labels):
    calls.count = getattr(calls, "count", 0) + 1
    if calls.count == 20 and threading.current_thread().name == "hpcps rank 1" and not MARK.exists():
        MARK.touch()
        raise RuntimeError("this rank fails")
    errors = samples @ params["weight"] - labels
    return float(errors @ errors) / 2, {"weight": samples.T @ errors}
"""


def test_the_last_worker_goes_on_alone(tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN)
    rows = (f"{i % 7},{(3 * i) % 5},{2 * (i % 7) - (3 * i) % 5}" for i in range(200))
    (tmp_path / "data.csv").write_text("\n".join(rows) + "\n")
    tree = {
        "data": {"path": str(tmp_path / "data.csv"), "label_column": "-1"},
        "model": {"kind": f"{tmp_path / 'own.py'}:f", "task": "regression", "parameters": {"weight": [2]}},
        "optimizer": {"kind": "sgd", "learning_rate": 0.01},
        "train": {"epochs": 40, "batch": 40, "strategy": "server", "backup": 1},
        "checkpoint": {"every_steps": 7},
        "run": {"threads": 1, "survive": True},
    }
    found = hpcps.train(from_tree(tree), ranks=3, out=tmp_path / "run").summary
    assert (found["workers"], found["backup"], found["steps"]) == (1, 0, 200)
    assert found["loss"] < 1e-3
    assert "2 go on from the newest checkpoint" in capsys.readouterr().err
