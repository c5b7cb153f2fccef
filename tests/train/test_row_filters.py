"""Whole runs that keep rows of gradients back: server.threshold and server.kkt."""

import json

import numpy as np
import pytest

import hpcps
from hpcps import config
from hpcps.errors import ConfigError

FEATURES = 6000
KKT = ("optimizer.kind=ftrl", "optimizer.beta=0.02", "optimizer.l1=0.12", "server.kkt=1")
THRESHOLD = ("optimizer.kind=adagrad", "server.threshold=0.02")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """600 samples of 40 out of 6,000 features, of which few are common: letters of rows are long."""
    rng, lines = np.random.default_rng(0), []
    truth = rng.normal(size=FEATURES)
    for _ in range(600):
        features = np.unique((FEATURES * rng.random(40) ** 3).astype(int))
        label = int(truth[features].sum() + rng.normal() > 0)
        lines.append(f"{label} " + " ".join(f"{feature + 1}:1" for feature in features) + "\n")
    path = tmp_path_factory.mktemp("data") / "rows.svm"
    path.write_text("".join(lines))
    return path


def train(text, folder, *settings, ranks, model="logistic"):
    where = [f"data.path={text}", f"data.features={FEATURES}", "data.test_fraction=0.2", f"model.kind={model}"]
    how = ["train.epochs=3", "train.batch=20", "train.strategy=server", "run.threads=1"]
    return hpcps.train(config.read(None, settings=[*where, *how, *settings]), ranks=ranks, out=folder)


@pytest.mark.parametrize("filters", [THRESHOLD, KKT, (*KKT, "server.threshold=0.005")])
@pytest.mark.parametrize("model", ["logistic", "fm"])
def test_one_workers_bits_do_not_depend_on_where_shards_are(text, tmp_path, filters, model):
    ways = {"process": 1, "shard": 2, "shards": 3}
    runs = [
        train(text, tmp_path / way, f"server.count={max(1, ranks - 1)}", *filters, ranks=ranks, model=model).summary
        for way, ranks in ways.items()
    ]
    assert len({run["params_sha256"] for run in runs}) == 1
    assert len({run["pushed_rows"] for run in runs}) == 1
    assert 0 < runs[0]["pushed_rows"] < runs[0]["gradient_rows"]


@pytest.mark.parametrize("filters", [THRESHOLD, KKT])
@pytest.mark.parametrize(
    "more", [("server.count=2",), ("server.colocated=true", "server.replicas=1"), ("server.staleness=async",)]
)
def test_fewer_rows_are_pushed_and_as_much_is_learned(text, tmp_path, filters, more):
    run = train(text, tmp_path / "kept", *filters, *more, ranks=4)
    optimizer = [setting for setting in filters if setting.startswith("optimizer")]
    whole = train(text, tmp_path / "whole", *optimizer, *more, ranks=4).summary
    assert run.summary["pushed_rows"] < 0.75 * run.summary["gradient_rows"]
    if (
        filters is KKT
    ):  # what a threshold keeps of rows of one number is pushed with keys at the end of such short epochs
        assert run.summary["sent_bytes"] < whole["sent_bytes"]
    assert abs(run.summary["test_loss"] - whole["test_loss"]) < 0.03
    assert "pushed_rows" not in whole
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["pushed_rows"] < line["gradient_rows"] for line in lines)


def test_limits_that_nothing_is_within_change_no_bit(text, tmp_path):
    found = {
        train(text, tmp_path / str(limit), "optimizer.kind=sgd", f"server.threshold={limit}", ranks=3).summary[
            "params_sha256"
        ]
        for limit in (0, 1e-300)
    }
    assert len(found) == 1


def test_tables_on_shards_beside_all_reduced_parameters(text, tmp_path):
    run = train(text, tmp_path / "run", "train.strategy=auto", *THRESHOLD, ranks=4)
    assert "push (threshold 0.02)" in run.summary["exchange"]
    assert 0 < run.summary["pushed_rows"] < run.summary["gradient_rows"]


@pytest.mark.parametrize(
    ("settings", "ranks", "why"),
    [
        (("train.strategy=auto",), 1, r"server\.threshold: one worker alone pushes no rows"),
        (
            ("model.kind=mlp", "data.path=digits", "data.features=0", "data.test_fraction=0"),
            2,
            r"server\.threshold is for rows of tables",
        ),
    ],
)
def test_rows_that_are_not_pushed_cannot_be_kept_back(text, tmp_path, settings, ranks, why):
    with pytest.raises(ConfigError, match=why):
        train(text, tmp_path / "run", "server.threshold=1", *settings, ranks=ranks)
