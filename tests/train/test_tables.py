"""Models with tables: gradients, and whole runs on threads by all-reduce and through shards."""

from pathlib import Path

import hpcps_kernels
import numpy as np
import pytest

import hpcps
from hpcps import inference, models, trial
from hpcps.config import Model as Options
from hpcps.config import from_tree
from hpcps.data import Block, Csr
from hpcps.data.blocks import Places
from hpcps.errors import ConfigError, DataError
from hpcps.loader import Loaders
from hpcps.models import Facts
from hpcps.tables import as_rows, whole_tables

KERNELS = hpcps_kernels.load("cpu")
FEATURES = 1000


def sparse_rows(samples, classes, seed=0):
    """Entries with power-law columns, and labels that some columns tell; every sample has 6 entries."""
    rng = np.random.default_rng(seed)
    columns = np.array([rng.choice(FEATURES, 6, replace=False, p=LAW) for _ in range(samples)])
    truth = np.random.default_rng(1).normal(size=(FEATURES, classes))
    return columns, truth[columns].sum(axis=1).argmax(axis=1)


LAW = 1 / np.arange(1, FEATURES + 1)
LAW /= LAW.sum()


def libsvm(path: Path, samples, classes=2, seed=0):
    columns, labels = sparse_rows(samples, classes, seed)
    rng = np.random.default_rng(seed)
    lines = [
        f"{label} " + " ".join(f"{column + 1}:{value:.3f}" for column, value in zip(sorted(row), values, strict=True))
        for row, label, values in zip(columns, labels, rng.uniform(0.5, 1.5, columns.shape), strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def ratings(path: Path):
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(20, 3)), rng.normal(size=(15, 3))
    rows = [(u, i, (users[u] * items[i]).sum()) for u in range(20) for i in rng.choice(15, 12, replace=False)]
    path.write_text("user,item,label\n" + "\n".join(f"{u},{i},{r:.3f}" for u, i, r in rng.permutation(rows)))
    return path


CASES = {
    "logistic": {"kind": "logistic"},
    "hinge": {"kind": "logistic", "loss": "hinge"},
    "softmax": {"kind": "softmax"},
    "linear": {"kind": "linear", "loss": "huber", "delta": 0.5},
    "fm": {"kind": "fm", "factors": 3},
    "embedding": {"kind": "embedding", "width": 4, "hidden": [5], "combine": "mean"},
    "concat": {"kind": "embedding", "width": 3, "hidden": [5], "combine": "concat"},
    "matrix-factorization": {"kind": "matrix-factorization", "factors": 3},
}


def config(tmp_path, case, **more):
    data = tmp_path / f"{case}.data"
    if not data.exists():
        _ = ratings(data) if case == "matrix-factorization" else libsvm(data, 240, 3 if case == "softmax" else 2)
    kind = "csv" if case == "matrix-factorization" else "libsvm"
    tree = {
        "data": {"path": str(data), "format": kind, "test_fraction": 0.2},
        "model": CASES[case],
        "optimizer": {"kind": "adagrad", "learning_rate": 0.1},
        "train": {"epochs": 2, "batch": 60, "grains": 6, "reproducible": True},
    }
    for key, value in more.items():
        section, name = key.split("__")
        tree.setdefault(section, {})[name] = value
    return from_tree(tree)


@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_at_any_rank_thread_and_shard_count(tmp_path, monkeypatch, case):
    monkeypatch.setattr(trial, "RULE_NODES", 1)
    found = {}
    ways = [("ring", ranks, 1) for ranks in (1, 2, 5)] + [("server", 1, 2), ("server", 2, 1), ("server", 4, 2)]
    for strategy, ranks, shards in [*ways, ("auto", 4, 1), ("colocated", 3, 1)]:
        more = {"train__strategy": strategy, "server__count": shards, "run__threads": 1 + ranks % 2}
        if strategy == "colocated":
            more |= {"train__strategy": "server", "server__colocated": True}
        run = hpcps.train(config(tmp_path, case, **more), ranks=ranks, out=tmp_path / f"{strategy}{ranks}")
        found[strategy, ranks] = [run.summary[name] for name in ("params_sha256", "loss", "test_loss")]
        assert ("push to shards" in run.summary["exchange"]) == (strategy == "auto")
    assert len(set(map(tuple, found.values()))) == 1, found


@pytest.mark.parametrize("kind", ["sgd", "rmsprop", "adam", "adamw", "ftrl"])
def test_every_optimizer_is_the_same_on_worker_and_shard(tmp_path, kind):
    hashes = {
        hpcps.train(
            config(tmp_path, "fm", train__strategy=strategy, optimizer__kind=kind, optimizer__learning_rate=0.05),
            ranks=3,
            out=tmp_path / strategy,
        ).summary["params_sha256"]
        for strategy in ("ring", "server")
    }
    assert len(hashes) == 1


@pytest.mark.parametrize("case", ["logistic", "fm", "concat"])
def test_a_fast_run_repeats_itself_and_agrees_with_a_reproducible_one(tmp_path, case):
    def summary(name, **more):
        return hpcps.train(config(tmp_path, case, **more), ranks=2, out=tmp_path / name).summary

    fast = [summary(name, train__reproducible=False, run__threads=3) for name in ("a", "b")]
    assert fast[0]["params_sha256"] == fast[1]["params_sha256"]
    exact = summary("c")  # six grains: the same parts of a batch
    assert fast[0]["loss"] == pytest.approx(exact["loss"], rel=1e-4)


@pytest.mark.parametrize(("case", "quality"), [("logistic", 0.8), ("softmax", 0.7), ("fm", 0.75)])
@pytest.mark.parametrize("strategy", ["ring", "server"])
def test_it_learns_and_what_it_learned_is_used(tmp_path, case, quality, strategy):
    more = {"train__epochs": 5, "optimizer__learning_rate": 0.3, "train__strategy": strategy}
    training = config(tmp_path, case, train__batch=100, **more)
    classes = 3 if case == "softmax" else 2
    libsvm(Path(training.data.path), 3000, classes)
    run = hpcps.train(training, ranks=2, out=tmp_path / "run")
    assert run.summary["accuracy"] > quality
    assert inference.evaluate(run.folder)["accuracy"] == run.summary["accuracy"]
    fresh = libsvm(tmp_path / "fresh.svm", 200, classes, seed=9)
    labels = [int(line.split()[0]) for line in fresh.read_text().splitlines()]
    assert np.mean(inference.predict(run.folder, str(fresh)) == labels) > quality - 0.1


def test_ratings_are_learned_and_unknown_ids_are_named(tmp_path):
    training = config(tmp_path, "matrix-factorization", train__epochs=150, optimizer__learning_rate=0.2)
    run = hpcps.train(training, ranks=2, out=tmp_path / "run")
    assert run.summary["rmse"] < 1.0  # of ratings with a deviation of 1.7
    assert read_shapes(run) == {"bias": (1,), "item": (15, 4), "user": (20, 4)}
    (tmp_path / "new.csv").write_text("user,item\n3,4\n20,1\n")
    with pytest.raises(DataError, match=r"new\.csv: line 3: 20 is none of the 20 ids"):
        inference.predict(run.folder, str(tmp_path / "new.csv"))


def read_shapes(run):
    return inference.read(run.folder).trained.params.shapes


@pytest.mark.parametrize("bad", ["-1", "1.5", "16777217"])
def test_what_is_no_id_is_named(tmp_path, bad):
    training = config(tmp_path, "matrix-factorization")
    Path(training.data.path).write_text("user,item,label\n" + f"1,2,3\n{bad},1,2\n" * 60)
    with pytest.raises(DataError, match=r"line \d+, feature 0 is .*; ids are whole numbers from 0 to 16777215"):
        hpcps.train(training, out=tmp_path / "run")


def test_samples_of_various_lengths_are_not_put_side_by_side(tmp_path):
    training = config(tmp_path, "concat")
    with Path(training.data.path).open("a") as file:
        file.write("1 5:1\n")
    with pytest.raises(ConfigError, match=r"model\.combine = 'concat': the samples differ"):
        hpcps.train(training, out=tmp_path / "run")


@pytest.mark.parametrize("case", ["logistic", "softmax", "fm", "embedding"])
@pytest.mark.parametrize("strategy", ["ring", "server"])
def test_parts_without_any_entry_are_fine(tmp_path, case, strategy):
    training = config(tmp_path, case, train__strategy=strategy)
    labels = "0\n1\n2\n" if case == "softmax" else "0\n1\n"
    Path(training.data.path).write_text(labels * 80 + "1 900:1\n" + labels * 40)
    hashes = {
        hpcps.train(training, ranks=ranks, out=tmp_path / f"run{ranks}").summary["params_sha256"] for ranks in (1, 3)
    }
    assert len(hashes) == 1


def test_clipping_by_the_norm_is_refused_with_tables(tmp_path):
    with pytest.raises(ConfigError, match=r"optimizer\.clip_norm .* tables"):
        hpcps.train(config(tmp_path, "fm", optimizer__clip_norm=1.0), out=tmp_path / "run")


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_numerical_derivatives_of_the_loss(case):
    rng = np.random.default_rng(3)
    options = Options(**{key: tuple(v) if isinstance(v, list) else v for key, v in CASES[case].items()})
    is_ids = case == "matrix-factorization"
    facts = Facts(2 if is_ids else FEATURES, 3, sparse=not is_ids, ids=(7, 5) if is_ids else (), entries=6)
    model = models.make(options, facts, "float64", KERNELS)
    params = model.init(rng)
    params.flat[:] = 0.5 * rng.normal(size=len(params.flat))
    block = some_block(model, is_ids)
    tables = whole_tables(model, params, KERNELS)
    how = Loaders(tables, np.zeros(facts.features), np.full(facts.features, 0.7), "float64", KERNELS)
    batch = how.of(block).load(np.array([4, 0, 2]))

    dense = params.dense.on(np.full(len(params.dense.flat), np.nan))
    rows = tables.room_for_rows(batch)
    loss = model.loss_gradient(tables.pick(params, batch), batch, {**dense, **rows})
    assert loss == pytest.approx(model.loss(tables.pick(params, batch), batch), rel=1e-12)
    gradient = np.zeros_like(params.flat)
    gradient[: len(dense.flat)] = dense.flat
    for name, (keys, values) in as_rows(batch, rows).items():
        assert len(set(keys.tolist())) == len(keys)
        params.on(gradient).table(name)[keys] = values

    touched = np.flatnonzero(gradient)
    assert len(touched) > 10
    for i in [*touched, *rng.integers(0, len(gradient), 20)]:
        around = []
        for step in (1e-5, -1e-5):
            moved = params.on(params.flat.copy())
            moved.flat[i] += step
            around.append(model.loss(whole_tables(model, moved, KERNELS).pick(moved, batch), batch))
        assert gradient[i] == pytest.approx((around[0] - around[1]) / 2e-5, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_rows_made_one_by_one_are_those_of_whole_tables(case, dtype):
    options = Options(**{key: tuple(v) if isinstance(v, list) else v for key, v in CASES[case].items()})
    facts = Facts(FEATURES, 3, sparse=True, ids=(70, 50) if case == "matrix-factorization" else (), entries=6)
    model = models.make(options, facts, dtype, KERNELS)
    params, first = model.init(np.random.default_rng(5)), model.first(np.random.default_rng(5))
    assert tuple(first.tables) == model.tables == params.tables
    assert first.dense.shapes == params.dense.shapes
    assert np.array_equal(first.dense.flat, params.dense.flat)
    for name, how in first.tables.items():
        assert how.shape == params.shapes[name]
        keys = np.random.default_rng(6).permutation(how.shape[0])[:20]
        rows = np.empty((len(keys), how.width), dtype)
        how.fill(rows, keys, KERNELS)
        np.testing.assert_array_equal(rows, params.table(name)[keys], strict=True)
        drawn = params.table(name)[:, how.zeros :]
        assert not params.table(name)[:, : how.zeros].any()
        assert drawn.std() == pytest.approx(how.deviation, rel=0.2)
    if case == "matrix-factorization":
        assert (params["user"][:50, 1:] != params["item"][:, 1:]).mean() > 0.99


def some_block(model, is_ids):
    labels = {"regression": np.array([0.5, -1.0, 2.0, 0.1, 7.0]), "binary": np.array([0, 1, 1, 0, 1])}
    chosen = labels.get(model.task, np.array([0, 2, 1, 1, 0]))
    if is_ids:
        return Block(np.array([[6, 0], [1, 4], [2, 2], [3, 1], [6, 2]]), chosen, Places(()))
    columns, _ = sparse_rows(5, 2)
    values = np.random.default_rng(2).uniform(0.5, 2, 30).astype(np.float32)
    return Block(Csr(np.arange(0, 31, 6), columns.reshape(-1).astype(np.int32), values, FEATURES), chosen, Places(()))


def test_values_that_are_all_one_are_left_out():
    columns, labels = sparse_rows(5, 2)
    for value, kept in ((1.0, 0), (2.0, 12)):
        csr = Csr(np.arange(0, 31, 6), columns.reshape(-1).astype(np.int32), np.full(30, value, np.float32), FEATURES)
        model = models.make(Options(kind="logistic"), Facts(FEATURES, 2, sparse=True), "float32", KERNELS)
        tables = whole_tables(model, model.init(np.random.default_rng()), KERNELS)
        how = Loaders(tables, np.zeros(FEATURES), np.ones(FEATURES), "float32", KERNELS)
        batch = how.of(Block(csr, labels, Places(()))).load(np.array([1, 3]))
        assert len(batch.samples.values) == kept
        assert np.array_equal(batch.keys["weight"][batch.samples.columns[0]], columns[[1, 3]].reshape(-1))
