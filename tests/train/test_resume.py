"""Runs that are left at a checkpoint and go on from there: the same bits at any other rank and shard count."""

import json
import shutil

import msgspec
import numpy as np
import pytest

import hpcps
from hpcps import trial
from hpcps.config import from_tree
from hpcps.errors import CheckpointError, ConfigError

FEATURES = 500
WAYS = {
    "ring": {"train.strategy": "ring"},
    "rows": {"train.strategy": "auto"},  # tables on shards, beside all-reduced parameters: see rows_on_shards
    "server": {"train.strategy": "server"},
    "two shards": {"train.strategy": "server", "server.count": 2},
    "colocated": {"train.strategy": "server", "server.colocated": True},
    "copied": {"train.strategy": "server", "server.colocated": True, "server.replicas": 1},
    "averaging": {"train.strategy": "averaging", "train.average_every": 3, "train.reproducible": False},
}
MODELS = {
    "softmax": {"model.kind": "softmax", "data.path": "digits", "data.scale": "maxabs"},
    "mlp": {"model.kind": "mlp", "model.hidden": [300, 300], "data.path": "digits", "data.scale": "maxabs"},
    "logistic": {"model.kind": "logistic"},
    "fm": {"model.kind": "fm", "model.factors": 3},
    "embedding": {"model.kind": "embedding", "model.width": 4, "model.hidden": [5]},
}
PLAIN = {"train.epochs": 3, "train.batch": 200, "train.reproducible": True, "checkpoint.keep": 99}
SPARSE = {"data.format": "libsvm", "train.batch": 60, "data.test_fraction": 0.2, "optimizer.learning_rate": 0.05}


@pytest.fixture(scope="session")
def clicks(tmp_path_factory):
    """Sparse samples of power-law features."""
    rng = np.random.default_rng(0)
    law = 1 / np.arange(1, FEATURES + 1)
    truth, lines = rng.normal(size=FEATURES), []
    for _ in range(500):
        columns = np.sort(rng.choice(FEATURES, 6, replace=False, p=law / law.sum()))
        lines.append(
            f"{int(truth[columns].sum() > 0)} " + " ".join(f"{c + 1}:{rng.uniform(0.5, 2):.3f}" for c in columns)
        )
    path = tmp_path_factory.mktemp("data") / "clicks.svm"
    path.write_text("\n".join(lines) + "\n")
    return path


class Runs:
    """Trains in folders of their own."""

    def __init__(self, folder, clicks):
        self.folder = folder
        self.clicks = clicks

    def config(self, model, **more):
        chosen = {**PLAIN, **({} if "data.path" in MODELS[model] else {"data.path": str(self.clicks), **SPARSE})}
        tree = {}
        for key, value in {**chosen, **MODELS[model], **more}.items():
            section, name = key.split(".")
            tree.setdefault(section, {})[name] = value
        return from_tree(tree)

    def train(self, name, model, ranks=1, resume=False, **more):
        return hpcps.train(self.config(model, **more), ranks=ranks, out=self.folder / name, resume=resume).summary

    def left_at(self, name, step, source):
        """A copy of a run as if it had been killed after the checkpoint of ``step``."""
        folder = self.folder / name
        shutil.copytree(self.folder / source, folder)
        for left in ("summary.json", "model.safetensors"):
            (folder / left).unlink()
        for path in (folder / "checkpoint").iterdir():
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path)
        return folder


@pytest.fixture(autouse=True)
def rows_on_shards(monkeypatch):
    """As if the nodes were many."""
    monkeypatch.setattr(trial, "RULE_NODES", 1)


@pytest.fixture
def runs(tmp_path, clicks):
    return Runs(tmp_path, clicks)


RESULTS = ("params_sha256", "loss", "test_loss", "steps")


def results(summary):
    return [summary[name] for name in RESULTS]


def metrics(folder):
    timed = ("train_s", "samples_per_s", "idle", "sent_bytes", "received_bytes", "requests_per_s", "stragglers")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


@pytest.mark.parametrize(
    ("model", "kind", "dtype"),
    [
        ("softmax", "adagrad", "float32"),
        ("mlp", "adam", "float64"),
        ("logistic", "ftrl", "float32"),
        ("logistic", "adam", "float64"),
        ("fm", "adam", "float32"),
        ("embedding", "adagrad", "float64"),
    ],
)
def test_the_same_bits_as_uninterrupted_at_any_other_rank_and_shard_count(runs, model, kind, dtype):
    more = {"optimizer.kind": kind, "train.dtype": dtype, "train.report_every": 4}
    whole = runs.train("whole", model, **more)
    ways = [("ring", 1), ("ring", 2), ("server", 3), ("ring", 5), ("colocated", 3), ("two shards", 5), ("server", 1)]
    ways += [("copied", 2), ("rows", 4), ("ring", 3)]
    before = "whole"
    for number, ((way, ranks), step) in enumerate(zip(ways, range(1, 99), strict=False)):
        options = {**more, **WAYS[way], "checkpoint.every_steps": 1, "run.threads": 1 + number % 2}
        name = f"{number} {way} {ranks}"
        if number:  # each goes on where another way has left
            runs.left_at(name, step, before)
        found = runs.train(name, model, ranks=ranks, **options)
        assert found["resumed_from"] == list(range(2, number + 2)), name
        assert results(found) == results(whole), name
        assert metrics(runs.folder / name) == metrics(runs.folder / "whole"), name
        assert not found["checkpoint_problems"]
        before = name


@pytest.mark.parametrize("step", [7, 14, 21])
def test_at_the_end_of_an_epoch_and_of_the_run(runs, step):
    whole = runs.train("whole", "softmax", **{"checkpoint.every_steps": 7})
    assert whole["steps"] == 21
    runs.left_at("left", step, "whole")
    found = runs.train("left", "softmax", ranks=2)
    assert results(found) == results(whole)
    assert metrics(runs.folder / "left") == metrics(runs.folder / "whole")
    assert found["resumed_from"] == [step]


def test_a_finished_run_is_trained_longer(runs):
    whole = runs.train("whole", "softmax", **{"train.epochs": 5})
    runs.train("short", "softmax", **{"train.epochs": 2, "checkpoint.every_steps": 1000})
    with pytest.raises(ConfigError, match=r"holds a finished run; .*--resume"):
        runs.train("short", "softmax", **{"train.epochs": 5})
    found = runs.train("short", "softmax", ranks=3, resume=True, **{"train.epochs": 5})
    assert results(found) == results(whole)
    with pytest.raises(ConfigError, match=r"train\.epochs = 1 ends before step 14; --overwrite begins anew"):
        runs.train("short", "softmax", resume=True, **{"train.epochs": 1})


@pytest.mark.parametrize(
    ("more", "culprit"),
    [
        ({"train.batch": 100}, "train.batch = 100, and was 200"),
        ({"optimizer.kind": "adam"}, "optimizer.kind = 'adam', and was 'adagrad'"),
        ({"train.dtype": "float64"}, "train.dtype = 'float64', and was 'float32'"),
        ({"model.kind": "mlp"}, "model.kind = 'mlp', and was 'softmax'"),
        ({"train.reproducible": False}, "train.reproducible = False, and was True"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(runs, more, culprit):
    runs.train("whole", "softmax", **{"checkpoint.every_steps": 5})
    runs.left_at("left", 10, "whole")
    with pytest.raises(ConfigError, match=f"is a checkpoint of another run: {culprit}; --overwrite begins anew"):
        runs.train("left", "softmax", ranks=2, **more)
    config = runs.config("softmax", **more)
    found = hpcps.train(config, ranks=2, out=runs.folder / "left", overwrite=True).summary
    assert found["resumed_from"] == []
    assert not list((runs.folder / "left" / "checkpoint").iterdir())


def test_other_data_are_refused(runs, tmp_path):
    own = tmp_path / "elsewhere"
    own.mkdir()
    shutil.copy(runs.clicks, own)
    runs.train("whole", "logistic", **{"checkpoint.every_steps": 5})
    runs.left_at("left", 5, "whole")
    runs.train("left", "logistic", **{"data.path": str(own / "clicks.svm")})  # the same file, moved
    runs.left_at("other", 5, "whole")
    lines = (own / "clicks.svm").read_text().splitlines()
    (own / "clicks.svm").write_text("\n".join(lines[:-20]) + "\n")
    with pytest.raises(ConfigError, match="another run: 384 train samples, not 400"):
        runs.train("other", "logistic", **{"data.path": str(own / "clicks.svm")})


@pytest.mark.parametrize("model", ["softmax", "logistic"])
@pytest.mark.parametrize("staleness", [2, "async"])
@pytest.mark.parametrize("shards", [{"server.count": 2}, {"server.colocated": True}])
def test_runs_with_old_parameters_go_on_where_all_workers_meet(runs, model, staleness, shards):
    more = {"train.strategy": "server", "server.staleness": staleness, "train.reproducible": False, **shards}
    more |= {"optimizer.kind": "adam", "optimizer.learning_rate": 0.01}
    whole = runs.train("whole", model, ranks=4, **more, **{"checkpoint.every_steps": 5})
    assert not whole["checkpoint_problems"]
    workers = whole["workers"]
    manifest = read_manifest(runs.folder / "whole", 10)
    assert manifest["position"]["updates"] == 10 * workers
    runs.left_at("left", 10, "whole")
    found = runs.train("left", model, ranks=3, **more)
    steps, updates = whole["steps"], found["shards"][0]["updates"]
    assert updates == 10 * workers + (steps - 10) * found["workers"]
    early = metrics(runs.folder / "whole")[0]["loss"]
    assert found["loss"] < early
    synchronous = {**more, "server.staleness": 0, "server.colocated": False, "server.count": 1}
    runs.left_at("ring", 10, "whole")
    found = runs.train("ring", model, ranks=2, **{**synchronous, "train.strategy": "ring"})
    assert found["loss"] < early


@pytest.mark.parametrize("more", [{}, {"server.delay": "scale"}, {"server.delay": "compensate"}])
def test_an_asynchronous_run_of_one_worker_is_the_same_when_resumed(runs, more):
    options = {"train.strategy": "server", "server.staleness": "async", "train.reproducible": False, **more}
    options |= {"run.threads": 1}
    whole = runs.train("whole", "softmax", ranks=2, **options, **{"checkpoint.every_steps": 4})
    runs.left_at("left", 8, "whole")
    assert results(runs.train("left", "softmax", ranks=2, **options)) == results(whole)


def read_manifest(folder, step):
    text = (folder / "checkpoint" / f"step-{step:09d}" / "manifest.json").read_bytes()
    return msgspec.json.decode(text)["manifest"]


@pytest.mark.parametrize("model", ["softmax", "fm"])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_workers_that_train_alone_go_on_after_an_averaging(runs, model, kind):
    more = {**WAYS["averaging"], "optimizer.kind": kind, "run.threads": 1, "optimizer.learning_rate": 0.01}
    whole = runs.train("whole", model, ranks=3, **more)
    kept = runs.train("kept", model, ranks=3, **more, **{"checkpoint.every_steps": 4})
    assert results(kept) == results(whole)  # they wait for an averaging, and add none
    steps = sorted(int(path.name[5:]) for path in (runs.folder / "kept" / "checkpoint").iterdir())
    per_epoch = whole["steps"] // 3
    assert steps[0] == 6
    assert all((step % per_epoch) % 3 == 0 for step in steps)
    runs.left_at("left", 6, "kept")
    assert results(runs.train("left", model, ranks=3, **more)) == results(whole)
    for number, (way, ranks) in enumerate([("averaging", 2), ("ring", 2), ("server", 3)]):
        runs.left_at(f"left {number}", 6, "kept")
        other = {**more, "train.average_every": 10, **WAYS[way], "train.reproducible": False}
        if way == "averaging":
            other["train.average_every"] = 3
        found = runs.train(f"left {number}", model, ranks=ranks, **other)
        assert found["loss"] == pytest.approx(whole["loss"], rel=0.1)
    runs.left_at("alone", 6, "kept")
    again = runs.train("alone", model, **more, **{"checkpoint.every_steps": 4})
    runs.left_at("from alone", 9, "alone")
    assert results(runs.train("from alone", model, **more)) == results(again)


@pytest.mark.parametrize("kind", ["bf16", "int8", "topk"])
@pytest.mark.parametrize("way", ["ring", "two shards"])
def test_what_codes_left_out_is_not_lost(runs, kind, way):
    more = {**WAYS[way], "compress.kind": kind, "train.reproducible": False, "run.threads": 1}
    more |= {"compress.fraction": 0.1} if kind == "topk" else {}
    whole = runs.train("whole", "softmax", ranks=4, **more, **{"checkpoint.every_steps": 4})
    runs.left_at("left", 8, "whole")
    assert results(runs.train("left", "softmax", ranks=4, **more)) == results(whole)
    for number, (other, ranks) in enumerate([("ring", 3), ("server", 3), ("colocated", 2), ("ring", 1)]):
        runs.left_at(f"left {number}", 8, "whole")
        found = runs.train(f"left {number}", "softmax", ranks=ranks, **{**more, **WAYS[other], "server.count": 1})
        assert found["loss"] == pytest.approx(whole["loss"], rel=0.1)


@pytest.mark.parametrize("more", [{"server.admit_after": 2}, {"server.evict_after": 5}])
@pytest.mark.parametrize("ranks", [2, 3])
def test_tables_that_admit_and_evict_go_on(runs, more, ranks):
    options = {**WAYS["server"], "train.reproducible": "server.evict_after" in more, "run.threads": 1, **more}
    whole = runs.train("whole", "logistic", ranks=ranks, **options, **{"checkpoint.every_steps": 4})
    runs.left_at("left", 8, "whole")
    assert results(runs.train("left", "logistic", ranks=ranks, **options)) == results(whole)
    runs.left_at("shards", 8, "whole")
    found = runs.train("shards", "logistic", ranks=4, **{**options, "server.count": 2})
    if "server.evict_after" in more:
        assert results(found) == results(whole)
    assert found["loss"] == pytest.approx(whole["loss"], rel=0.2)


def test_a_window_of_a_stream_is_found_again(runs):
    more = {"data.window": 64}
    whole = runs.train("whole", "logistic", ranks=2, **more, **{"checkpoint.every_steps": 3})
    for step in (3, 9):
        runs.left_at(f"left {step}", step, "whole")
        assert results(runs.train(f"left {step}", "logistic", ranks=3, **more)) == results(whole)


OWN = """
import numpy as np

class Momentum:
    def init(self, params):
        return {"velocity": np.zeros(params.shape)}

    def update(self, params, gradient, state, step):
        state["velocity"] *= np.float32(0.9)
        state["velocity"] += gradient
        params -= np.float32(0.1 / step) * state["velocity"]
"""


@pytest.mark.parametrize("model", ["softmax", "logistic"])
def test_an_optimiser_of_the_users_own_goes_on(runs, tmp_path, model):
    (tmp_path / "own.py").write_text(OWN)
    more = {"optimizer.kind": f"{tmp_path}/own.py:Momentum"}
    if model == "logistic":
        more["optimizer.learning_rate"] = 0.1
    whole = runs.train("whole", model, ranks=2, **more, **{"checkpoint.every_steps": 5})
    runs.left_at("left", 10, "whole")
    assert results(runs.train("left", model, ranks=3, **more, **WAYS["server"])) == results(whole)
    (tmp_path / "own.py").write_text(OWN.replace("velocity", "speed"))
    runs.left_at("other", 10, "whole")
    with pytest.raises(CheckpointError, match="state 'speed' is not there"):
        runs.train("other", model, ranks=1, **more)


def test_records_and_checkpoints_do_not_go_together(runs):
    more = {"train.strategy": "server", "server.staleness": 1, "server.record": True, "train.reproducible": False}
    with pytest.raises(ConfigError, match=r"checkpoint\.every_steps with server\.record: a record is of a whole run"):
        runs.train("run", "softmax", **more, **{"checkpoint.every_steps": 5})
    runs.train("run", "softmax", ranks=3, **more)
