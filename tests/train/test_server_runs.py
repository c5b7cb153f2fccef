"""Whole runs on threads through shards: bounded staleness, asynchrony, shards on the workers' ranks, records."""

import json
from pathlib import Path

import pytest

import hpcps
from hpcps import config
from hpcps.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples"


def train(folder, *settings, ranks, example="digits.toml"):
    told = config.read(EXAMPLES / example, settings=["train.strategy=server", *settings])
    return hpcps.train(told, ranks=ranks, out=folder)


@pytest.mark.parametrize("example", ["digits.toml", "mlp.toml", "digits_by_hand.toml"])
def test_the_same_bits_wherever_the_parameters_are(tmp_path, example):
    ways = [["server.count=1"], ["server.count=2"], ["server.count=3"], ["server.colocated=true"]]
    ways += [["server.colocated=true", "server.replicas=1"], ["train.strategy=ring"]]
    found = {
        train(
            tmp_path / str(number), "train.reproducible=true", "train.epochs=2", *way, ranks=5, example=example
        ).summary["params_sha256"]
        for number, way in enumerate(ways)
    }
    assert len(found) == 1


@pytest.mark.parametrize("staleness", ["1", "4", "async"])
@pytest.mark.parametrize("shards", ["server.count=1", "server.count=2", "server.colocated=true"])
def test_digits_are_learned_from_old_parameters(tmp_path, staleness, shards):
    run = train(tmp_path / "run", f"server.staleness={staleness}", shards, "train.epochs=20", ranks=4)
    assert run.summary["accuracy"] >= 0.93
    workers = run.summary["workers"]
    assert len(run.summary["shards"]) == (4 if workers == 4 else 4 - workers)
    for shard in run.summary["shards"]:
        assert shard["updates"] == workers * run.summary["steps"] == sum(shard["staleness"].values())
        assert shard["duplicates"] == 0
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert len(line["idle"]) == workers
        assert all(0 <= part <= 1 for part in line["idle"])
        assert min(line["sent_bytes"], line["received_bytes"], line["requests_per_s"]) > 0


def test_the_first_steps_may_be_synchronous(tmp_path):
    settings = ["server.staleness=async", "server.warmup_steps=1000000"]
    warm = train(tmp_path / "warm", *settings, ranks=3).summary
    assert warm["params_sha256"] == train(tmp_path / "synchronous", ranks=3).summary["params_sha256"]
    (shard,) = warm["shards"]
    assert shard["updates"] == warm["steps"]
    assert set(shard["staleness"]) == {"0"}


@pytest.mark.parametrize("example", ["digits.toml", "mlp.toml"])
@pytest.mark.parametrize("more", [("server.count=2",), ("server.colocated=true", "server.delay=scale")])
def test_a_recorded_run_is_repeated_to_the_last_bit(tmp_path, example, more):
    settings = ["server.staleness=async", "train.epochs=2", "run.threads=1", *more]
    first = train(tmp_path / "first", *settings, "server.record=true", ranks=4, example=example)
    again = train(tmp_path / "again", *settings, f"server.replay={first.folder}", ranks=4, example=example)
    for name in ("params_sha256", "loss", "test_loss"):
        assert first.summary[name] == again.summary[name]
    assert [s["staleness"] for s in first.summary["shards"]] == [s["staleness"] for s in again.summary["shards"]]


def test_a_record_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"server\.replay: .*order-0\.bin: no record"):
        train(tmp_path / "run", "server.staleness=async", f"server.replay={tmp_path}", ranks=3)


@pytest.mark.parametrize("staleness", ["0", "async"])
@pytest.mark.parametrize("more", [("server.count=2",), ("server.colocated=true",)])
@pytest.mark.parametrize("example", ["digits.toml", "fm.toml"])
def test_copies_of_shards_change_nothing(tmp_path, staleness, more, example):
    settings = [f"server.staleness={staleness}", "train.epochs=2", *more]
    run = train(tmp_path / "copies", *settings, "server.replicas=1", ranks=4, example=example)
    assert run.summary["shards"][0]["updates"] > 0
    if staleness == "0":
        alone = train(tmp_path / "alone", *settings, ranks=4, example=example)
        assert run.summary["params_sha256"] == alone.summary["params_sha256"]


def test_a_copy_needs_another_rank(tmp_path):
    with pytest.raises(ConfigError, match=r"server\.replicas = 1 needs shards on two ranks"):
        train(tmp_path / "run", "server.replicas=1", ranks=3)


@pytest.mark.parametrize("kind", ["bf16", "int8", "topk"])
@pytest.mark.parametrize("more", ["server.count=2", "server.colocated=true"])
@pytest.mark.parametrize("example", ["digits.toml", "fm.toml"])
def test_gradients_are_pushed_in_fewer_bytes(tmp_path, kind, more, example):
    settings = ["train.epochs=6", "server.staleness=1", more]  # synchronous ones need not travel within a node
    coded = train(tmp_path / "coded", *settings, f"compress.kind={kind}", ranks=4, example=example).summary
    whole = train(tmp_path / "whole", *settings, ranks=4, example=example).summary
    if example == "digits.toml":
        assert coded["accuracy"] >= 0.85
        received = [sum(shard["received_bytes"] for shard in run["shards"]) for run in (coded, whole)]
        assert received[0] < 0.75 * received[1]
    assert coded["exchange"].startswith("push as ")


@pytest.mark.parametrize("delay", ["scale", "compensate"])
def test_gradients_of_old_parameters_may_be_changed(tmp_path, delay):
    run = train(tmp_path / "run", "server.staleness=async", f"server.delay={delay}", "train.epochs=20", ranks=4)
    assert run.summary["accuracy"] >= 0.93


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rmsprop", "adam", "adamw", "ftrl"])
def test_every_optimizer_runs_asynchronously(tmp_path, kind):
    rate = {"sgd": 0.5, "adagrad": 0.1, "ftrl": 0.1}.get(kind, 0.003)
    optimizer = [f"optimizer.kind={kind}", f"optimizer.learning_rate={rate}"]
    run = train(tmp_path / "run", "server.staleness=async", *optimizer, "train.epochs=20", ranks=3)
    assert run.summary["accuracy"] >= 0.9
