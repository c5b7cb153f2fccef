"""Workers that train alone and average their parameters: what an averaging is, whole runs, and what is refused."""

from pathlib import Path

import hpcps_kernels
import numpy as np
import pytest

import hpcps
from hpcps import inference, optim
from hpcps.averaging import AveragingExchange, Mean, Touched
from hpcps.collectives.choice import Choice
from hpcps.collectives.engine import Engine
from hpcps.config import Optimizer, from_tree, read
from hpcps.errors import ConfigError
from hpcps.params import Params
from hpcps.rows import Merger, Rows
from hpcps.run_folder import read_model
from hpcps.sums import Summed

EXAMPLES = Path(__file__).parents[2] / "examples"
KERNELS = hpcps_kernels.load("cpu")


def test_touched_rows_are_told_once():
    touched = Touched(9)
    touched.add(np.array([7, 2]))
    touched.add(np.array([2, 8, 0]))
    touched.add(np.empty(0, np.int64))
    assert touched.take().tolist() == [7, 2, 8, 0]
    assert touched.take().tolist() == []
    touched.add(np.array([8]))
    assert touched.take().tolist() == [8]


class Gradients:
    """The gradient that worker ``rank`` brings in each step: drawn, and rows of few keys."""

    def __init__(self, rank, count, sizes):
        self.rng = np.random.default_rng(rank)
        self.count = count
        self.sizes = sizes
        self.seen = []

    def finish(self):
        rows = {}
        for name, (size, width) in self.sizes.items():
            keys = self.rng.permutation(size)[: self.rng.integers(0, 4)]
            rows[name] = Rows(keys, self.rng.normal(size=(len(keys), width)))
        self.seen.append(Summed(self.rng.normal(size=self.count), 1.0, rows))
        return self.seen[-1]


def first_params(count, sizes):
    shapes = {"dense": (count,), **sizes}
    flat = np.random.default_rng(99).normal(size=count + sum(rows * width for rows, width in sizes.values()))
    return Params(shapes, flat, tuple(sizes))


@pytest.mark.parametrize("sizes", [{}, {"a": (40, 1), "b": (13, 3)}])
@pytest.mark.parametrize("count", [0, 1, 700, 70_001])
@pytest.mark.parametrize(
    ("samples", "nodes", "algorithm"),
    [
        ([5], "", "auto"),
        ([8, 8], "", "auto"),
        ([4, 2], "", "ring"),
        ([22, 21, 21], "", "memory"),
        ([7, 7, 7], "aab", "hierarchical"),
        ([3, 2, 2, 2, 2], "abaab", "doubling"),
    ],
)
def test_an_averaging_is_the_weighted_mean_and_the_same_bits_everywhere(
    on_ranks, samples, nodes, algorithm, count, sizes
):
    every, warmup, steps, rate = 3, 2, 9, 0.25

    def body(transport):
        engine = Engine(transport, KERNELS, Choice(algorithm))
        params = first_params(count, sizes)
        gradients = Gradients(transport.rank, count, sizes)
        mean = Mean(engine, params, samples, Merger(KERNELS), KERNELS)
        optimizer = optim.make(Optimizer(kind="sgd", learning_rate=rate), KERNELS)
        exchange = AveragingExchange(mean, optimizer, gradients, every, warmup)
        after = []
        for step in range(1, steps + 1):
            exchange.start(step)
            exchange.wait(None if step == 7 else list)
            after.append(params.flat.copy())
        exchange.finish()
        return after, gradients.seen, exchange.told()

    found = on_ranks(len(samples), body, nodes=nodes)
    alone = [first_params(count, sizes) for _ in samples]
    averagings = 0
    for step in range(1, steps + 1):
        for rank, params in enumerate(alone):
            summed = found[rank][1][step - 1]
            params["dense"][:] -= rate / samples[rank] * summed.dense
            for name, (keys, values) in summed.rows.items():
                params[name][keys] -= rate / samples[rank] * values
        if step in (1, 2, 5, 7):  # twice at the start, after three steps, and where all is asked for
            mean = np.average([params.flat for params in alone], axis=0, weights=samples)
            for params in alone:
                params.flat[:] = mean
            assert {after[step - 1].tobytes() for after, _, _ in found} == {found[0][0][step - 1].tobytes()}
            averagings += 1
        for rank, params in enumerate(alone):
            np.testing.assert_allclose(found[rank][0][step - 1], params.flat, rtol=1e-12, atol=1e-13)
    assert found[0][2] == {"averagings": 0 if len(samples) == 1 else averagings}


def test_rows_that_nobody_has_touched_stay_at_home(on_ranks):
    """And keep their bits, which a mean might round."""
    rows = 1000

    def body(transport):
        engine = Engine(transport, KERNELS)
        sizes = []
        allreduce = engine.allreduce
        engine.allreduce = lambda x: (sizes.append(len(x)), allreduce(x))
        params = first_params(1, {"table": (rows, 3)})
        mean = Mean(engine, params, [3, 3, 1], Merger(KERNELS), KERNELS)
        for _ in range(2):
            keys = np.array([transport.rank, 500, 501 + transport.rank])
            params["table"][keys] += 1 + transport.rank
            mean.touch("table", keys)
            mean.finish(mean.start())
        return params["table"], sizes

    first = first_params(1, {"table": (rows, 3)})["table"]
    keys = [0, 1, 2, 500, 501, 502, 503]
    for table, sizes in on_ranks(3, body):
        assert sizes == [3 * len(keys)] * 2
        assert np.array_equal(np.delete(table, keys, axis=0), np.delete(first, keys, axis=0))
        np.testing.assert_allclose(table[500] - first[500], 2 * (3 * 1 + 3 * 2 + 1 * 3) / 7)


def dense(tmp_path, kind):
    """A tree for dense data; several parts a worker, workers of unequal shares."""
    rng = np.random.default_rng(2)
    samples = rng.normal(size=(400, 5))
    scores = samples @ rng.normal(size=(5, 3))
    labels = {"linear": scores[:, 0], "logistic": scores[:, 0] > 0}.get(kind, scores.argmax(axis=1))
    np.savez(tmp_path / "d.npz", samples=samples, labels=labels * 1.0)
    model = {"kind": kind, "hidden": [9], "activation": "tanh"} if kind == "mlp" else {"kind": kind}
    return {"data": {"path": str(tmp_path / "d.npz"), "test_fraction": 0.1}, "model": model}


def sparse(tmp_path, kind):
    """Samples of few of many features, some of them frequent, as libsvm text; or ratings of few users and items."""
    rng = np.random.default_rng(3)
    if kind == "matrix-factorization":
        lines = ["user,item,label", *(f"{user},{item},{user * item % 5}" for user in range(20) for item in range(15))]
    else:
        columns = [np.unique((300 * rng.random(6) ** 3).astype(int)) for _ in range(300)]
        truth = rng.normal(size=300)
        lines = [" ".join([str(int(truth[c].sum() > 0)), *(f"{i + 1}:1" for i in c)]) for c in columns]
    data = tmp_path / "data"
    data.write_text("\n".join(lines) + "\n")
    model = {"kind": kind, "width": 4, "hidden": [5]} if kind == "embedding" else {"kind": kind}
    form = "csv" if kind == "matrix-factorization" else "libsvm"
    return {"data": {"path": str(data), "format": form, "test_fraction": 0.1}, "model": model}


def run(tmp_path, tree, ranks, strategy, optimizer=None, threads=2, **train):
    optimizer = {"kind": "sgd", "learning_rate": 0.1} | (optimizer or {})
    train = {"epochs": 2, "batch": 34, "dtype": "float64", "strategy": strategy, **train}
    config = from_tree({**tree, "optimizer": optimizer, "train": train, "run": {"threads": threads}})
    done = hpcps.train(config, ranks=ranks, out=tmp_path / f"run{len(list(tmp_path.iterdir()))}")
    return read_model(done.folder).params, done.summary


def assert_same(found, expected, rtol):
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["linear", "logistic", "softmax", "mlp"])
@pytest.mark.parametrize("optimizer", [{}, {"momentum": 0.9, "nesterov": True, "l2": 0.01}], ids=["sgd", "nesterov"])
def test_after_every_step_it_is_the_all_reduce_to_rounding(tmp_path, kind, ranks, optimizer):
    """34 samples a batch: workers of 7 and 6, or 12 and 11. SGD with momentum is linear in the gradient, too."""
    tree = dense(tmp_path, kind)
    expected, plain = run(tmp_path, tree, ranks, "ring", optimizer)
    found, summary = run(tmp_path, tree, ranks, "averaging", optimizer, average_every=1)
    assert_same(found, expected, 1e-9)
    assert summary["loss"] == pytest.approx(plain["loss"], rel=1e-9)
    assert summary["averagings"] == (summary["steps"] if ranks > 1 else 0)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["logistic", "fm", "embedding", "matrix-factorization"])
def test_with_tables_too(tmp_path, kind, ranks):
    tree = sparse(tmp_path, kind)
    expected, plain = run(tmp_path, tree, ranks, "ring")
    found, summary = run(tmp_path, tree, ranks, "averaging", average_every=1)
    assert_same(found, expected, 1e-9)
    assert summary["test_loss"] == pytest.approx(plain["test_loss"], rel=1e-9)


def test_float32_agrees_as_well_as_float32_can(tmp_path):
    tree = dense(tmp_path, "softmax")
    expected, _ = run(tmp_path, tree, 3, "ring", dtype="float32")
    found, _ = run(tmp_path, tree, 3, "averaging", dtype="float32", average_every=1)
    assert_same(found, expected, 1e-5)


@pytest.mark.parametrize("optimizer", [{"kind": "adam", "learning_rate": 0.01}, {"clip_norm": 0.1}])
def test_one_worker_has_nothing_to_average(tmp_path, optimizer):
    tree = dense(tmp_path, "mlp")
    _, plain = run(tmp_path, tree, 1, "ring", optimizer)
    _, summary = run(tmp_path, tree, 1, "averaging", optimizer)
    assert summary["params_sha256"] == plain["params_sha256"]
    assert (summary["exchange"], summary["averagings"]) == ("averaging every 10 steps: none", 0)


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rmsprop", "adam", "adamw"])
@pytest.mark.parametrize("make", [dense, sparse])
def test_every_optimizer_with_state_of_its_own_learns_and_repeats_itself(tmp_path, kind, make):
    """Two of five workers have no gradient for a row that others have: all end alike, or the run is refused."""
    tree = make(tmp_path, "logistic")
    optimizer = {"kind": kind, "learning_rate": 0.02}
    more = {"average_every": 4, "epochs": 10, "dtype": "float32"}
    runs = [run(tmp_path, tree, 5, "averaging", optimizer, **more)[1] for _ in range(2)]
    assert runs[0]["params_sha256"] == runs[1]["params_sha256"]
    assert runs[0]["loss"] < 0.69


def digits(tmp_path, *settings, ranks=3, example="digits.toml"):
    config = read(EXAMPLES / example, {}, ["train.strategy=averaging", *settings])
    return hpcps.train(config, ranks=ranks, out=tmp_path / f"run{len(list(tmp_path.iterdir()))}")


@pytest.mark.parametrize("example", ["digits.toml", "mlp.toml", "averaging.toml"])
def test_digits_are_learned(tmp_path, example):
    assert digits(tmp_path, example=example).summary["accuracy"] >= 0.93


@pytest.mark.parametrize("settings", [["run.threads=2"], ["optimizer.clip_norm=0.5"], ["train.algorithm=ring"]])
def test_digits_are_learned_with(tmp_path, settings):
    assert digits(tmp_path, *settings).summary["accuracy"] >= 0.93


@pytest.mark.parametrize(
    ("settings", "averagings", "often"),
    [
        ([], 4, "every 10 steps"),  # 14 steps an epoch: 10, 14, 24, 28
        (["train.average_every=7"], 4, "every 7 steps"),
        (["train.average_every=1000"], 2, "every 1000 steps"),
        (["train.average_every=1"], 28, "every step"),
        (["train.average_every=1", "train.average_warmup=9"], 28, "every step"),
        (["train.average_warmup=5"], 8, "every 10 steps, every step up to step 5"),  # 1 to 5, 14, 24, 28
        (["train.report_every=3"], 4, "every 10 steps"),
    ],
)
def test_a_run_says_how_often_it_averaged(tmp_path, capsys, settings, averagings, often):
    summary = digits(tmp_path, "train.epochs=2", "train.batch=100", *settings).summary
    assert summary["averagings"] == averagings
    assert (summary["strategy"], summary["exchange"]) == ("averaging", f"averaging {often}: shared memory")
    assert f"strategy averaging (as configured; averaging {often}: shared memory)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("algorithm", "name"), [("memory", "shared memory"), ("ring", "ring"), ("doubling", "recursive doubling")]
)
def test_the_algorithm_is_the_one_that_was_asked_for(tmp_path, algorithm, name):
    summary = digits(tmp_path, "train.epochs=1", f"train.algorithm={algorithm}").summary
    assert summary["exchange"] == f"averaging every 10 steps: {name}"


def test_what_is_evaluated_is_what_is_kept(tmp_path):
    done = digits(tmp_path, "train.epochs=1")
    assert inference.evaluate(done.folder)["test_loss"] == pytest.approx(done.summary["test_loss"], rel=1e-9)


def test_tables_are_said_too(tmp_path):
    _, summary = run(tmp_path, sparse(tmp_path, "fm"), 2, "averaging")
    assert summary["exchange"] == "averaging every 10 steps: shared memory; touched rows of tables: all-reduce"


def test_a_function_of_the_users_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def loss_gradient(params, samples, labels):\n"
        "    residual = samples @ params['weight'] - labels\n"
        "    return (residual**2).sum() / 2, {'weight': residual @ samples}\n"
    )
    tree = dense(tmp_path, "linear")
    tree["model"] = {
        "kind": f"{tmp_path / 'mine.py'}:loss_gradient",
        "parameters": {"weight": [5]},
        "task": "regression",
    }
    found, summary = run(tmp_path, tree, 3, "averaging", epochs=20, average_every=4)
    assert summary["loss"] < 1e-6
    expected, _ = run(tmp_path, tree, 3, "ring", epochs=20)
    assert_same(found, expected, 1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["train.reproducible=true"],
            "'averaging' with train.reproducible: what a worker computes depends on",
        ),
        (["compress.kind=int8"], "'averaging' with compress.kind = 'int8': codes are for gradients"),
        (["compress.kind=topk"], "'averaging' with compress.kind = 'topk': codes are for gradients"),
        (["optimizer.kind=ftrl"], "'averaging' with optimizer.kind = 'ftrl': it makes parameters of sums of its own"),
        (["server.count=2"], r"server\.count is the server strategy's; train\.strategy = 'averaging' does not use it"),
        (["train.average_every=0"], r"train\.average_every: expected `int` >= 1 \(averaging: steps that workers"),
        (["train.average_warmup=-1"], r"train\.average_warmup: expected `int` >= 0 \(averaging: steps at the start"),
        (
            ["train.strategy=ring", "train.average_every=3"],
            r"average_every is averaging's; .* = 'ring' does not",
        ),
        (
            ["train.strategy=auto", "train.average_every=3"],
            r"average_every is averaging's; .* = 'auto' does not",
        ),
        (["train.strategy=server", "train.average_warmup=3"], r"average_warmup is averaging's; .* = 'server' does not"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_reason(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read(EXAMPLES / "digits.toml", {}, ["train.strategy=averaging", *settings])
    assert "\n" not in str(caught.value)


def test_a_norm_to_clip_does_not_reach_tables(tmp_path):
    with pytest.raises(ConfigError, match=r"optimizer\.clip_norm is for dense gradients"):
        run(tmp_path, sparse(tmp_path, "fm"), 2, "averaging", {"clip_norm": 1.0})


def test_fewer_samples_than_workers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.batch = 2 is fewer than 3 workers"):
        digits(tmp_path, "train.batch=2")
