"""Whole runs on threads: the same bits at any rank count, and what a run leaves behind."""

import json
from pathlib import Path

import numpy as np
import pytest

import hpcps
from hpcps import inference
from hpcps.config import from_tree, read
from hpcps.errors import DataError

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = ["train.epochs=2", "train.batch=100", "train.grains=7"]


def train(tmp_path, example="digits.toml", *settings, ranks=1):
    config = read(EXAMPLES / example, {}, [*QUICK, *settings])
    folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
    return hpcps.train(config, ranks=ranks, out=folder)


@pytest.mark.parametrize("example", ["digits.toml", "digits_by_hand.toml"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_bits_at_any_rank_thread_and_shard_count(tmp_path, example, dtype):
    found = {}
    for strategy in ("ring", "server"):
        for ranks in (1, 2, 3, 4, 5):
            for shards in (1, 2) if strategy == "server" and ranks != 2 else (1,):
                settings = [
                    f"train.strategy={strategy}",
                    f"server.count={shards}",
                    f"train.dtype={dtype}",
                    f"run.threads={1 + ranks % 3}",
                    "train.reproducible=true",
                ]
                run = train(tmp_path, example, *settings, ranks=ranks)
                found[strategy, ranks, shards] = [
                    run.summary[name] for name in ("params_sha256", "loss", "test_loss", "accuracy")
                ]
    assert len(set(map(tuple, found.values()))) == 1, found


@pytest.mark.parametrize("grains", [8, 12, 16])
@pytest.mark.parametrize("example", ["digits.toml", "mlp.toml", "digits_by_hand.toml"])
def test_the_same_bits_at_any_number_of_grains(tmp_path, example, grains):
    found = set()
    for strategy, ranks, shards, threads in (
        ("ring", 1, 1, 1),
        ("ring", 2, 1, 3),
        ("ring", 3, 1, 1),
        ("ring", 5, 1, 2),
        ("ring", 7, 1, 1),
        ("server", 1, 2, 1),
        ("server", 3, 1, 1),
        ("server", 7, 2, 1),
    ):
        settings = [f"train.strategy={strategy}", f"server.count={shards}", f"run.threads={threads}", "train.epochs=1"]
        run = train(tmp_path, example, f"train.grains={grains}", "train.reproducible=true", *settings, ranks=ranks)
        found.add(tuple(run.summary[name] for name in ("params_sha256", "loss", "test_loss", "accuracy")))
    assert len(found) == 1, found


@pytest.mark.parametrize("strategy", ["ring", "server"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_fast_run_repeats_itself_at_the_same_rank_and_thread_count(tmp_path, strategy, ranks):
    settings = (f"train.strategy={strategy}", "run.threads=2")
    runs = [train(tmp_path, "digits.toml", *settings, ranks=ranks) for _ in range(2)]
    assert runs[0].summary["params_sha256"] == runs[1].summary["params_sha256"]


@pytest.mark.parametrize("optimizer", [["kind=sgd"], ["kind=sgd", "momentum=0.9"], ["kind=adagrad"], ["kind=adam"]])
def test_all_optimizers_are_the_same_on_worker_and_shard(tmp_path, optimizer):
    settings = [f"optimizer.{option}" for option in optimizer] + ["optimizer.learning_rate=0.01"]
    hashes = {
        train(
            tmp_path, "digits.toml", f"train.strategy={strategy}", "train.reproducible=true", *settings, ranks=3
        ).summary["params_sha256"]
        for strategy in ("ring", "server")
    }
    assert len(hashes) == 1


def test_fast_and_reproducible_runs_agree_to_rounding(tmp_path):
    first = train(tmp_path, "digits.toml", "train.reproducible=true", "run.threads=1").summary
    other = train(tmp_path, "digits.toml", "run.threads=7").summary  # the same parts: seven of them
    assert first["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_a_perceptron_has_the_same_bits_at_any_rank_thread_and_shard_count(tmp_path, activation):
    found = set()
    for strategy, ranks, threads in (
        ("ring", 1, 2),
        ("ring", 2, 1),
        ("ring", 3, 2),
        ("server", 2, 2),
        ("server", 3, 1),
    ):
        settings = [f"train.strategy={strategy}", f"run.threads={threads}", f"model.activation={activation}"]
        run = train(tmp_path, "mlp.toml", "train.reproducible=true", *settings, ranks=ranks)
        found.add(tuple(run.summary[name] for name in ("params_sha256", "loss", "test_loss", "accuracy")))
    assert len(found) == 1, found


@pytest.mark.parametrize(("task", "quality"), [("binary", {"accuracy": 0.98}), ("regression", {"rmse": 0.9})])
def test_a_perceptron_learns_other_tasks(tmp_path, task, quality):
    rng = np.random.default_rng(3)
    samples = rng.normal(size=(1000, 2))
    product = samples.prod(axis=1)  # no linear model can tell its sign
    labels = np.where(product > 0, 5, -5) if task == "binary" else 3 * product
    keep = np.abs(product) > 0.05
    np.savez(tmp_path / "data.npz", samples=samples[keep], labels=labels[keep])
    settings = [f"model.task={task}", f"data.path={tmp_path / 'data.npz'}", "data.scale=none", "data.test_fraction=0.2"]
    run = train(tmp_path, "mlp.toml", *settings, "train.epochs=60", "train.batch=32", ranks=2)
    ((name, bound),) = quality.items()
    assert run.summary[name] > bound if name == "accuracy" else run.summary[name] < bound
    predicted = inference.predict(run.folder, str(tmp_path / "data.npz"))
    assert task == "regression" or set(predicted.tolist()) == {-5, 5}


def test_a_perceptron_learns_digits(tmp_path):
    assert train(tmp_path, "mlp.toml", "train.epochs=20", ranks=2).summary["accuracy"] > 0.95


@pytest.mark.parametrize("strategy", ["ring", "server"])
def test_digits_are_learned(tmp_path, strategy):
    run = train(tmp_path, "digits.toml", "train.epochs=20", f"train.strategy={strategy}", ranks=2)
    assert run.summary["accuracy"] >= 0.93


def test_what_a_run_leaves_behind(tmp_path):
    run = train(tmp_path, "digits.toml", "train.report_every=5", ranks=2)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary == run.summary
    named = {"loss", "test_loss", "accuracy", "samples_per_s", "wall_s", "steps", "ranks", "strategy", "staleness"}
    assert named <= set(summary)
    assert (summary["steps"], summary["ranks"], summary["train_samples"]) == (28, 2, 1437)
    metrics = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [5, 10, 14, 15, 20, 25, 28]
    assert [line["step"] for line in metrics if "accuracy" in line] == [14, 28]
    assert metrics[-1]["test_loss"] == summary["test_loss"]
    assert read(run.folder / "config.toml").train.report_every == 5
    assert inference.evaluate(run.folder)["test_loss"] == pytest.approx(summary["test_loss"], rel=1e-9)
    assert inference.evaluate(run.folder)["accuracy"] == summary["accuracy"]


def binary_csv(path, count, low, high):
    rng = np.random.default_rng(len(path.name))
    samples = rng.normal(size=(count, 3))
    labels = np.where(samples @ [1.0, -2.0, 0.5] + 0.3 > 0, high, low)
    rows = [",".join(map(str, [*row, label])) for row, label in zip(samples.tolist(), labels.tolist(), strict=True)]
    path.write_text("\n".join(["a,b,c,label", *rows]) + "\n")
    return labels


def test_binary_labels_of_any_integers_come_back_from_prediction(tmp_path):
    binary_csv(tmp_path / "train.csv", 400, -7, 3)
    labels = binary_csv(tmp_path / "heldout.csv", 100, -7, 3)
    config = from_tree(
        {
            "data": {"path": str(tmp_path / "train.csv"), "test": str(tmp_path / "heldout.csv"), "scale": "none"},
            "model": {"kind": "logistic"},
            "optimizer": {"kind": "adagrad", "learning_rate": 0.5},
            "train": {"epochs": 20, "batch": 50},
        }
    )
    run = hpcps.train(config, ranks=2, out=tmp_path / "run")
    assert run.summary["accuracy"] > 0.95
    predicted = inference.predict(run.folder, str(tmp_path / "heldout.csv"))
    assert set(predicted.tolist()) <= {-7, 3}
    assert (predicted == labels).mean() == run.summary["accuracy"]
    assert inference.evaluate(run.folder, str(tmp_path / "heldout.csv"))["accuracy"] == run.summary["accuracy"]


def test_linear_regression_finds_the_least_squares_solution(tmp_path):
    rng = np.random.default_rng(2)
    samples = rng.normal(size=(512, 4)) * [1, 10, 0.1, 3] + [5, -3, 0, 1]
    labels = samples @ [1.0, -0.2, 3.0, 0.5] + 2 + rng.normal(size=512) * 0.1
    np.savez(tmp_path / "data.npz", samples=samples, labels=labels)
    config = from_tree(
        {
            "data": {"path": str(tmp_path / "data.npz"), "scale": "standard", "test_fraction": 0.25},
            "model": {"kind": "linear"},
            "optimizer": {"kind": "sgd", "learning_rate": 0.1},
            "train": {"epochs": 60, "batch": 64, "dtype": "float64"},
        }
    )
    run = hpcps.train(config, ranks=3, out=tmp_path / "run")
    assert run.summary["rmse"] == pytest.approx(0.1, rel=0.3)
    design = np.c_[samples, np.ones(512)]
    best = design @ np.linalg.lstsq(design, labels, rcond=None)[0]
    predicted = inference.predict(run.folder, str(tmp_path / "data.npz"))
    assert np.abs(predicted - best).max() < 0.1


def test_sparse_text_trains_as_the_same_dense_data_does(tmp_path):
    with np.load(Path(hpcps.__file__).parent / "data" / "digits.npz") as digits:
        names = sorted(digits.files)
        samples, labels = digits[names[0]], digits[names[2]]
        if samples.ndim == 1:
            samples, labels = labels, samples
        pair = {len(digits[name]): {} for name in names}
        for name in names:
            pair[len(digits[name])]["xy"[digits[name].ndim == 1]] = digits[name]
    for count, arrays in pair.items():
        rows = [
            f"{label} " + " ".join(f"{j + 1}:{value}" for j, value in enumerate(row) if value)
            for row, label in zip(arrays["x"].tolist(), arrays["y"].tolist(), strict=True)
        ]
        (tmp_path / f"{count}.svm").write_text("\n".join(rows) + "\n")
    large, small = (tmp_path / f"{count}.svm" for count in sorted(pair, reverse=True))
    tree = {
        "data": {"path": str(large), "test": str(small), "scale": "maxabs", "features": 64},
        "model": {"kind": "softmax"},
        "train": {"epochs": 2, "batch": 100, "reproducible": True, "grains": 7},
    }
    dense = train(tmp_path, "digits.toml", "train.reproducible=true").summary
    sparse = hpcps.train(from_tree(tree), ranks=2, out=tmp_path / "sparse").summary
    assert sparse["params_sha256"] == dense["params_sha256"]


def test_counts_are_predicted_by_a_poisson_model_and_others_refused(tmp_path):
    rng = np.random.default_rng(4)
    samples = rng.normal(size=(1000, 3))
    rates = np.exp(samples @ [0.5, -0.4, 0.2] + 1)
    np.savez(tmp_path / "counts.npz", samples=samples, labels=rng.poisson(rates).astype(float))
    tree = {
        "data": {"path": str(tmp_path / "counts.npz"), "test_fraction": 0.2},
        "model": {"kind": "linear", "loss": "poisson"},
        "train": {"epochs": 20, "batch": 50},
    }
    run = hpcps.train(from_tree(tree), ranks=2, out=tmp_path / "run")
    predicted = inference.predict(run.folder, str(tmp_path / "counts.npz"))
    assert np.corrcoef(np.log(predicted), np.log(rates))[0, 1] > 0.99
    assert (predicted > 0).all()
    np.savez(tmp_path / "counts.npz", samples=samples, labels=np.where(np.arange(1000) == 77, -1.0, 2.0))
    with pytest.raises(DataError, match=r"sample 77: the label is -1.0; model\.loss = 'poisson' needs counts"):
        hpcps.train(from_tree(tree), ranks=2, out=tmp_path / "other")
