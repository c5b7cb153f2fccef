"""The program as a user meets it: what it prints, its exit status, and one line for each mistake."""

import json
import os
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hpcps import cli
from hpcps.comm import launcher

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = ["--set", "train.epochs=1", "--set", "run.transport=threads"]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for _, rank, size in launcher._VARIABLES:
        monkeypatch.delenv(rank, raising=False)
        monkeypatch.delenv(size, raising=False)


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def train(capsys, tmp_path, *settings, example="digits.toml", ranks=1, quick=QUICK):
    chosen = [word for setting in settings for word in ("--set", setting)]
    config = EXAMPLES / example if isinstance(example, str) else example
    return run(capsys, "train", config, "--ranks", ranks, "--out", tmp_path / "run", *quick, *chosen)


def assert_one_line(said, culprit):
    status, out, err = said
    assert status == 2, (out, err)
    assert err.startswith("hpcps: error: "), err
    assert err.count("\n") == 1, err
    for word in [culprit] if isinstance(culprit, str) else culprit:
        assert word in err


def test_a_run_shows_progress_and_ends_with_a_table(capsys, tmp_path):
    status, out, err = train(capsys, tmp_path, ranks=2)
    assert (status, err) == (0, "")
    assert "epoch 1/1  step 22/22  loss" in out
    for word in ("held-out accuracy", "samples/s", "seconds", "2, threads", "params_sha256", str(tmp_path / "run")):
        assert word in out
    assert run(capsys, "evaluate", tmp_path / "run")[1].startswith("test loss ")
    status, out, _ = run(capsys, "predict", tmp_path / "run", "--input", "digits")
    assert status == 0
    assert len(out.splitlines()) == 360
    assert set(out.split()) <= set("0123456789")
    assert run(capsys, "predict", tmp_path / "run", "--input", "digits", "--output", tmp_path / "p.txt")[0] == 0
    assert (tmp_path / "p.txt").read_text() == out


def test_a_finished_run_is_kept(capsys, tmp_path):
    assert train(capsys, tmp_path)[0] == 0
    before = (tmp_path / "run" / "summary.json").read_bytes()
    assert_one_line(train(capsys, tmp_path, ranks=2), ["holds a finished run", "--overwrite"])
    assert (tmp_path / "run" / "summary.json").read_bytes() == before
    bad = train(capsys, tmp_path, "train.batch=5000", quick=[*QUICK, "--overwrite"])
    assert_one_line(bad, "train.batch = 5000")  # and nothing is lost by the attempt
    assert (tmp_path / "run" / "summary.json").read_bytes() == before
    assert train(capsys, tmp_path, quick=[*QUICK, "--overwrite"])[0] == 0
    assert (tmp_path / "run" / "summary.json").read_bytes() != before


def test_doctor_names_the_parts(capsys):
    status, out, _ = run(capsys, "doctor")
    assert status == 0
    assert "with --survive the" in out
    for word in ("packages", "numba", "MPI", "dead rank", "ranks", "rank 0", "GPU", "JIT cache"):
        assert word in out


def test_version_help_and_unknown_commands(capsys):
    import hpcps

    assert hpcps.__version__ in run(capsys, "--version")[1]
    assert "train" in run(capsys, "--help")[1]
    assert run(capsys, "trian")[0] == 2
    assert run(capsys, "train")[0] == 2
    assert run(capsys, "train", "x.toml", "--ranks", "0")[0] == 2


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        (["data.path=/no/such.csv"], "/no/such.csv"),
        (["train.batch=5000"], ["train.batch = 5000", "1437"]),
        (["model.kind=logistic"], ["digits", "10 classes", "binary"]),
        (["train.bach=3"], ["train.bach", "train.batch"]),
        (["train.epochs=some"], "train.epochs"),
        (["model.kind=sofmax"], ["sofmax", "softmax"]),
        (["model.kind=/no/such.py:f"], "/no/such.py"),
        (["train.strategy=server", "server.count=9", "train.batch=5000"], "5000"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(capsys, tmp_path, ranks, settings, culprit):
    if ranks == 3 and "server.count=9" in settings:
        culprit = "server.count = 9 leaves no worker among 3 ranks"
    assert_one_line(train(capsys, tmp_path, *settings, ranks=ranks), culprit)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_more_ranks_than_grains(capsys, tmp_path):
    settings = ["train.reproducible=true", "train.grains=2"]
    assert_one_line(train(capsys, tmp_path, *settings, ranks=3), "train.grains = 2 is fewer than 3 workers")


def csv(tmp_path, rows):
    file = tmp_path / "data.csv"
    file.write_text("".join(f"{row}\n" for row in rows))
    return f"data.path={file}"


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(
    ("line", "culprit"),
    [
        ("0.5,abc,1", ["data.csv: line 7", "'abc'"]),
        ("0.5,nan,1", ["data.csv: line 7"]),
        ("0.5,1", ["data.csv: line 7"]),
        ("0.5,1,0.5", ["data.csv: line 7"]),
    ],
)
def test_a_bad_line_is_named(capsys, tmp_path, ranks, line, culprit):
    rows = [f"{i}.5,2.25,{i % 2}" for i in range(40)]
    rows[6] = line
    settings = [csv(tmp_path, rows), "train.batch=8", "data.test_fraction=0", "data.scale=none"]
    assert_one_line(train(capsys, tmp_path, *settings, ranks=ranks), culprit)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("strategy", ["ring", "server"])
@pytest.mark.parametrize("exact", ["true", "false"])
def test_nan_in_memory_mapped_data_is_found_where_it_is(capsys, tmp_path, ranks, strategy, exact):
    samples = np.random.default_rng(1).normal(size=(64, 5))
    samples[50, 3] = np.nan
    np.save(tmp_path / "x.npy", samples)
    np.save(tmp_path / "y.npy", np.arange(64) % 3)
    settings = [
        f"data.path={tmp_path}/x.npy",
        f"data.labels={tmp_path}/y.npy",
        "data.scale=none",
        "train.batch=32",
        f"train.strategy={strategy}",
        f"train.reproducible={exact}",
    ]
    assert_one_line(train(capsys, tmp_path, *settings, ranks=ranks), ["x.npy: sample 50", "feature 3"])
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_learning_rate_that_diverges_says_so(capsys, tmp_path):
    samples = np.random.default_rng(1).normal(size=(64, 5)) * 1e3
    np.savez(tmp_path / "d.npz", samples=samples, labels=samples.sum(axis=1))
    settings = [f"data.path={tmp_path}/d.npz", "data.scale=none", "train.batch=32", "model.kind=linear"]
    settings += ["optimizer.kind=sgd", "optimizer.learning_rate=1e6", "train.epochs=50"]
    assert_one_line(train(capsys, tmp_path, *settings), "learning_rate")


OWN = """
import threading
import numpy as np

def fine(params, samples, labels):
    return 0.0, {"weight": np.zeros((10, 64)), "bias": np.zeros(10)}

def raises_on_rank_1(params, samples, labels):
    if "rank 1" in threading.current_thread().name:
        raise ValueError("no luck today")
    return fine(params, samples, labels)

def wrong_shape(params, samples, labels):
    return 0.0, {"weight": np.zeros((64, 10)), "bias": np.zeros(10)}

def is_nan(params, samples, labels):
    return float("nan"), fine(params, samples, labels)[1]
"""


@pytest.mark.parametrize("strategy", ["ring", "server"])
@pytest.mark.parametrize(
    ("name", "culprit"),
    [
        ("raises_on_rank_1", ["rank 1, step 1: ", "own.py:10: ValueError: no luck today"]),
        ("wrong_shape", ["step 1", "own.py:wrong_shape", "'weight' has shape (64, 10), expected (10, 64)"]),
        ("is_nan", ["step 1", "own.py:is_nan", "the loss is nan"]),
    ],
)
def test_a_users_function_that_fails_on_one_rank_ends_all(capsys, tmp_path, strategy, name, culprit):
    (tmp_path / "own.py").write_text(OWN)
    settings = [f"model.kind={tmp_path}/own.py:{name}", "model.scores=", f"train.strategy={strategy}"]
    said = train(capsys, tmp_path, *settings, "run.threads=1", example="digits_by_hand.toml", ranks=3)
    assert_one_line(said, culprit)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hpcps rank")]


HARD = """
import sys
import threading
import time
import numpy as np
import neighbour

def fine(params, samples, labels):
    return 0.0, {"weight": np.zeros((10, 64)), "bias": np.zeros(10)}

def on(rank, params, samples, labels):
    if f"rank {rank}" in threading.current_thread().name:
        time.sleep(20)
    return fine(params, samples, labels)

def never_on_0(*batch): return on(0, *batch)
def never_on_1(*batch): return on(1, *batch)
def leaves(*batch): sys.exit(0)
def wild(*batch): raise GeneratorExit
def scalar_scores(params, samples): return np.float64(1)

class Mute(Exception):
    def __str__(self): raise ValueError
def mute(*batch): raise Mute

class Forgets:
    def init(self, rng): return {"w": np.zeros(3), "v": np.zeros(3)}
    def loss_gradient(self, params, batch, gradient_out):
        gradient_out["w"][:] = 0
        return 0.0
"""


def train_hard(capsys, tmp_path, name, *settings, ranks=2, scores=""):
    (tmp_path / "hard.py").write_text(HARD)
    (tmp_path / "neighbour.py").write_text("")
    shapes = [] if name == "Forgets" else ["model.parameters={weight=[10, 64], bias=[10]}"]
    config = tmp_path / "own.toml"
    config.write_text(f'data.path = "digits"\nmodel.kind = "hard.py:{name}"\nmodel.scores = "{scores}"\n')
    return train(capsys, tmp_path, *shapes, "run.threads=1", *settings, example=config, ranks=ranks)


@pytest.mark.parametrize("name", ["never_on_0", "never_on_1"])
def test_a_users_function_that_does_not_return_ends_with_the_timeout(capsys, tmp_path, name):
    started = time.monotonic()
    status, _, err = train_hard(capsys, tmp_path, name, "run.timeout_s=0.5")
    assert status == 3
    assert "waited 0.5 s for rank(s)" in err
    assert err.count("\n") == 1
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("name", "culprit"),
    [
        ("leaves", "hard.py:18: SystemExit: 0"),
        ("wild", "hard.py:19: GeneratorExit"),
        ("mute", "hard.py:24: Mute: (its message cannot be made)"),
        ("Forgets", "gradient 'v' is not finite"),
    ],
)
def test_a_users_function_that_behaves_badly_is_named(capsys, tmp_path, name, culprit):
    assert_one_line(train_hard(capsys, tmp_path, name), culprit)


def test_scores_of_a_strange_shape(capsys, tmp_path):
    said = train_hard(capsys, tmp_path, "fine", scores="hard.py:scalar_scores")
    assert_one_line(said, "scores have shape ()")


@pytest.mark.parametrize(
    ("setting", "culprit"),
    [
        ("train.seed=99999999999999999999", "train.seed"),
        ("run.timeout_s=inf", "run.timeout_s"),
        ("train.straggler_factor=1", "train.straggler_factor = 1: must be 0 or more than 1"),
        ("optimizer.learning_rate=inf", "optimizer.learning_rate"),
    ],
)
def test_numbers_out_of_bounds(capsys, tmp_path, setting, culprit):
    assert_one_line(train(capsys, tmp_path, setting), culprit)


def test_a_key_of_another_strategy(capsys, tmp_path):
    assert_one_line(train(capsys, tmp_path, "train.strategy=ring", "server.count=2"), "server.count")


def test_nan_is_named_also_with_a_function_of_ones_own_and_at_prediction(capsys, tmp_path):
    samples = np.random.default_rng(1).integers(0, 16, (200, 64)).astype(float)
    samples[150, 7] = np.nan
    np.save(tmp_path / "x.npy", samples)
    np.save(tmp_path / "y.npy", np.arange(200) % 10)
    settings = [f"data.path={tmp_path}/x.npy", f"data.labels={tmp_path}/y.npy", "data.scale=none", "train.batch=50"]
    culprit = ["x.npy: sample 150", "feature 7"]
    assert_one_line(train(capsys, tmp_path, *settings, example="digits_by_hand.toml", ranks=2), culprit)
    assert train(capsys, tmp_path)[0] == 0
    assert_one_line(run(capsys, "predict", tmp_path / "run", "--input", tmp_path / "x.npy"), culprit)


def test_what_cannot_predict_says_what_is_missing(capsys, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    settings = [f"model.kind={tmp_path}/own.py:fine", "model.scores="]
    status, out, err = train(capsys, tmp_path, *settings, example="digits_by_hand.toml")
    assert (status, err) == (0, "")
    assert "accuracy" not in out
    assert_one_line(run(capsys, "predict", tmp_path / "run", "--input", "digits"), "model.scores")


def test_folders_that_are_no_finished_runs(capsys, tmp_path):
    for command in (["evaluate"], ["predict", "--input", "digits"]):
        assert_one_line(run(capsys, command[0], tmp_path / "absent", *command[1:]), "no such folder")
        assert_one_line(run(capsys, command[0], tmp_path, *command[1:]), "is not a finished run")


def test_data_that_do_not_fit_the_model_at_prediction(capsys, tmp_path):
    assert train(capsys, tmp_path)[0] == 0
    np.save(tmp_path / "narrow.npy", np.zeros((3, 5)))
    said = run(capsys, "predict", tmp_path / "run", "--input", tmp_path / "narrow.npy")
    assert_one_line(said, ["narrow.npy", "5 features", "64"])


def test_a_bug_is_a_traceback_and_status_1(capsys, tmp_path, monkeypatch):
    def broken(*arguments):
        raise KeyError("a bug")

    monkeypatch.setattr("hpcps.trainer.Trainer.run", broken)
    status, _, err = train(capsys, tmp_path, ranks=2)
    assert status == 1
    assert "Traceback" in err
    assert "a bug" in err


def test_a_full_disk_at_the_end_leaves_no_finished_run(capsys, tmp_path, monkeypatch):
    def full(path, trained, elsewhere):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hpcps.run_folder._write_model", full)
    assert_one_line(train(capsys, tmp_path, ranks=2), ["run", "No space left on device"])
    assert not (tmp_path / "run" / "summary.json").exists()


SLOW = """
import threading, time
import numpy as np

def f(params, samples, labels):
    time.sleep(0.05 if threading.current_thread().name == "hpcps rank 1" else 0.005)
    return 0.0, {"weight": np.zeros((10, 64)), "bias": np.zeros(10)}
"""


@pytest.mark.parametrize("strategy", ["ring", "server"])
def test_a_slow_worker_is_named(capsys, tmp_path, strategy):
    (tmp_path / "own.py").write_text(SLOW)
    settings = [f"model.kind={tmp_path}/own.py:f", "model.scores=", f"train.strategy={strategy}", "run.threads=1"]
    status, out, err = train(capsys, tmp_path, *settings, example="digits_by_hand.toml", ranks=4)
    assert (status, err) == (0, "")
    (line,) = re.findall("^note: .*slower.*$", out, re.M)
    assert re.fullmatch(
        rf"note: rank 1 \({re.escape(os.uname().nodename)}\): [\d.]+ times slower than the median", line
    )
    for name in ("summary.json", "metrics.jsonl"):
        (slow,) = json.loads((tmp_path / "run" / name).read_text())["stragglers"]
        assert (slow["rank"], slow["node"], slow["times"] > 2) == (1, os.uname().nodename, True)
    words = [*settings, "train.straggler_factor=0"]
    status, out, _ = run(capsys, *train_words(tmp_path, words), "--overwrite")
    assert (status, "slower" in out) == (0, False)


def train_words(tmp_path, settings):
    words = [word for setting in settings for word in ("--set", setting)]
    return ["train", EXAMPLES / "digits_by_hand.toml", "--ranks", 2, "--out", tmp_path / "run", *QUICK, *words]
