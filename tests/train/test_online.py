"""Every sample a step: the same numbers as the kernel's own pass, whole runs that share them, and what is refused."""

from pathlib import Path

import hpcps_kernels
import numpy as np
import pytest

import hpcps
from hpcps import inference, parts, stall
from hpcps.config import from_tree
from hpcps.errors import CheckpointError, ConfigError
from hpcps.run import train_rank
from hpcps.run_folder import read_model

REFERENCE = hpcps_kernels.load("reference")
FEATURES, SAMPLES = 1000, 600
RATES = {"ftrl": (0.1, 1.0, 0.01, 0.0), "adagrad": (0.1, 1e-8, 0.0), "sgd": (0.1, 0.0)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Samples of six entries whose columns follow a power law; a linear model explains their labels in part."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("online") / "rows.svm"
    truth = rng.normal(size=FEATURES)
    lines = []
    for _ in range(SAMPLES):
        columns = np.unique((FEATURES * rng.random(6) ** 3).astype(int))
        values = rng.uniform(0.5, 1.5, len(columns)).round(3)
        label = int(truth[columns] @ values > 0)
        lines.append(f"{label} " + " ".join(f"{c + 1}:{v}" for c, v in zip(columns, values, strict=True)))
    path.write_text("\n".join(lines) + "\n")
    return path


def config(path, **more):
    tree = {
        "data": {"path": str(path), "format": "libsvm", "features": FEATURES},
        "model": {"kind": "logistic"},
        "optimizer": {"kind": "ftrl", "learning_rate": 0.1, "l1": 0.01},
        "train": {"strategy": "online", "epochs": 2, "batch": 50},
    }
    for key, value in more.items():
        section, name = key.split("__")
        tree.setdefault(section, {})[name] = value
    return from_tree(tree)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", RATES)
def test_one_thread_learns_what_one_pass_after_the_other_does(tmp_path, data, kind, dtype):
    l1 = 0.01 if kind == "ftrl" else 0.0
    training = config(data, optimizer__kind=kind, optimizer__l1=l1, train__dtype=dtype, run__threads=1)
    summary = hpcps.train(training, ranks=1, out=tmp_path / "run").summary
    (rows, labels), pairs = read(data), (2,) * (kind != "sgd")
    state, bias = np.zeros((FEATURES, *pairs), dtype), np.zeros(pairs or 1, dtype)
    for epoch in range(2):
        order = parts.order(0, epoch, 0, SAMPLES)
        kernel = getattr(REFERENCE, f"online_{kind}")
        loss = kernel(state, bias, *rows, labels.astype(dtype), order, "logistic", 1.0, *RATES[kind])
    weight = state if kind == "sgd" else state[:, 0]
    if kind == "ftrl":
        weight = np.empty(FEATURES, dtype)
        REFERENCE.online_ftrl_weights(weight, state, *RATES[kind])
    found = read_model(tmp_path / "run").params
    np.testing.assert_allclose(found["weight"], weight, rtol=2e-3, atol=1e-5)
    assert summary["loss"] == pytest.approx(loss / SAMPLES, rel=1e-4)
    assert (found["weight"] != 0).sum() > 100


def read(path):
    """The samples as (indptr, indices, values), and labels."""
    indptr, indices, values, labels = [0], [], [], []
    for line in path.read_text().splitlines():
        label, *entries = line.split()
        labels.append(float(label))
        for entry in entries:
            column, value = entry.split(":")
            indices.append(int(column) - 1)
            values.append(float(value))
        indptr.append(len(indices))
    return (np.array(indptr), np.array(indices, np.int32), np.array(values, np.float32)), np.array(labels)


@pytest.mark.parametrize(("ranks", "threads"), [(1, 3), (2, 1), (3, 2)])
@pytest.mark.parametrize("kind", RATES)
def test_workers_that_share_their_numbers_learn_as_one_does(tmp_path, data, kind, ranks, threads):
    def summary(name, **more):
        options = {"optimizer__kind": kind, "optimizer__l1": 0.0, "data__test": str(data), "train__epochs": 5}
        return hpcps.train(config(data, **options, run__threads=threads), out=tmp_path / name, **more).summary

    one, all_of_them = summary("one", ranks=1), summary("all", ranks=ranks)
    assert all_of_them["loss"] == pytest.approx(one["loss"], rel=0.15)
    assert all_of_them["accuracy"] > 0.8
    assert all_of_them["strategy"] == "online"
    assert inference.evaluate(tmp_path / "all")["accuracy"] == all_of_them["accuracy"]


@pytest.mark.parametrize(
    "more", [{"data__window": 100}, {"data__scale": "maxabs"}, {"data__window": 64, "train__epochs": 1}]
)
def test_streamed_and_scaled_samples_are_learned_too(tmp_path, data, more):
    training = config(data, **{"train__epochs": 5, "data__test": str(data), **more}, run__threads=2)
    summary = hpcps.train(training, ranks=1, out=tmp_path / "run").summary
    assert summary["accuracy"] > (0.65 if more.get("train__epochs") == 1 else 0.8)


@pytest.mark.parametrize("case", ["linear", "hinge", "huber"])
def test_other_losses(tmp_path, data, case):
    kind = "logistic" if case == "hinge" else "linear"
    loss = {"model__loss": case} if case != "linear" else {}
    options = {"model__kind": kind, "optimizer__kind": "adagrad", "optimizer__l1": 0.0, **loss}
    losses = [
        hpcps.train(config(data, train__epochs=epochs, **options), ranks=2, out=tmp_path / f"{epochs}").summary["loss"]
        for epochs in (1, 4)
    ]
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"model__kind": "softmax"}, r"model\.kind = 'softmax': it is for linear and logistic"),
        ({"optimizer__kind": "adam"}, r"optimizer\.kind = 'adam': it is for sgd, adagrad, ftrl"),
        ({"optimizer__kind": "sgd", "optimizer__momentum": 0.9}, r"optimizer\.momentum"),
        ({"optimizer__kind": "sgd"}, r"optimizer\.l1: it needs optimizer\.kind = 'ftrl'"),
        ({"optimizer__clip_norm": 1.0}, r"optimizer\.clip_norm: there is no gradient"),
        ({"train__reproducible": True}, r"train\.reproducible: who is first"),
        ({"compress__kind": "bf16"}, r"compress\.kind = 'bf16': nothing is sent"),
        ({"train__algorithm": "ring"}, r"train\.algorithm is the all-reduce's; train\.strategy = 'online'"),
        ({"server__count": 2}, r"server\.count is the server strategy's"),
    ],
)
def test_what_takes_a_batch_is_refused(data, more, why):
    with pytest.raises(ConfigError, match=why):
        config(data, **more)


@pytest.mark.parametrize("kind", RATES)
def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(tmp_path, data, kind):
    options = {"optimizer__kind": kind, "optimizer__l1": 0.0, "run__threads": 1, "checkpoint__every_steps": 7}
    whole = hpcps.train(config(data, **options), ranks=1, out=tmp_path / "whole").summary
    hpcps.train(config(data, **options, train__epochs=1), ranks=1, out=tmp_path / "run")
    found = hpcps.train(config(data, **options), ranks=1, out=tmp_path / "run", resume=True).summary
    assert found["resumed_from"] == [12]
    assert found["params_sha256"] == whole["params_sha256"]
    with pytest.raises(CheckpointError, match="is of another strategy"):
        hpcps.train(config(data, **options), ranks=1, out=left_by_all_reduce(tmp_path / "ring", data, options))


def left_by_all_reduce(out, data, options):
    """A folder with a checkpoint of a run by all-reduce, which has not ended."""
    hpcps.train(config(data, **{**options, "train__strategy": "ring", "train__epochs": 1}), ranks=1, out=out)
    (out / "summary.json").unlink()
    return out


def test_ranks_of_several_nodes_are_refused(tmp_path, data, on_ranks):
    def body(transport):
        refused = pytest.raises(ConfigError, match="for the ranks of one node; these are on 2")
        with refused, stall.watched(transport.rank, 3, 60) as watch:
            train_rank(transport, config(data), tmp_path / "run", False, watch)

    on_ranks(3, body, nodes=["a", "a", "b"])
    assert not (tmp_path / "run").exists()


def test_dense_samples_are_learned_feature_by_feature(tmp_path):
    path = tmp_path / "dense.npz"
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=(500, 12)).astype(np.float32), rng.normal(size=12)
    np.savez(path, x=samples, y=samples @ truth)
    options = {"data__format": "npz", "data__features": 0, "optimizer__kind": "sgd", "optimizer__l1": 0.0}
    training = config(path, model__kind="linear", optimizer__learning_rate=0.02, **options)
    run = hpcps.train(training, ranks=2, out=tmp_path / "run")
    np.testing.assert_allclose(read_model(run.folder).params["weight"], truth, atol=0.05)
