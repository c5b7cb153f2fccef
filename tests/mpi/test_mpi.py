"""hpcps over MPI: few launches, each with much in it, for a launch costs over a second."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hpcps
from hpcps import starter
from hpcps.config import read

EXAMPLES = Path(__file__).parents[2] / "examples"
CONTRACT = Path(__file__).with_name("contract.py")
TIMEOUT_S = 120
QUICK = ["--set", "train.epochs=2"]

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="session")
def launcher():
    found = starter.find()
    if found is None:
        pytest.skip("mpi4py finds no MPI library")
    return found


def mpirun(launcher, ranks, *command):
    line = [*starter.command_line(launcher, ranks), sys.executable, *map(str, command)]
    environment = starter.environment(os.environ, ranks)
    del environment["HPCPS_LAUNCHED_RANKS"]  # as a user's own mpirun would
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def program(*arguments):
    command = [sys.executable, "-m", "hpcps", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_the_transport_keeps_its_promises(launcher, ranks):
    done = mpirun(launcher, ranks, CONTRACT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"on {ranks} MPI" in done.stdout


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """What one process gets."""
    settings = ["train.epochs=2", "train.reproducible=true"]

    def one_process(example):
        run = hpcps.train(
            read(EXAMPLES / f"{example}.toml", {}, settings), out=tmp_path_factory.mktemp("alone") / "run"
        )
        return run.summary["params_sha256"]

    return {example: one_process(example) for example in ("digits", "matrix_factorization")}


@pytest.mark.parametrize("strategy", ["ring", "server"])
@pytest.mark.parametrize(
    ("example", "ranks"), [("digits", 2), ("digits", 3), ("digits", 5), ("matrix_factorization", 4)]
)
def test_ranks_that_hpcps_starts_get_the_same_bits(launcher, tmp_path, alone, example, ranks, strategy):
    settings = [f"train.strategy={strategy}", "train.reproducible=true"]
    words = [word for setting in settings for word in ("--set", setting)]
    config = EXAMPLES / f"{example}.toml"
    done = program("train", config, "--ranks", ranks, "--out", tmp_path / "run", *QUICK, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    found = summary(tmp_path / "run")
    assert found["params_sha256"] == alone[example]
    assert (found["ranks"], found["transport"][:3]) == (ranks, "MPI")
    assert done.stdout.count(f"params_sha256 {alone[example]}") == 1


@pytest.mark.parametrize("example", ["averaging", "fm"])
def test_workers_that_train_alone_end_as_threads_do(launcher, tmp_path, example):
    """The same sums in the same order: shared memory, whoever shares it."""
    settings = ["train.strategy=averaging", "train.average_every=4", "run.threads=1", "train.epochs=2"]
    words = [word for setting in settings for word in ("--set", setting)]
    done = program("train", EXAMPLES / f"{example}.toml", "--ranks", 3, "--out", tmp_path / "run", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    threads = hpcps.train(read(EXAMPLES / f"{example}.toml", {}, settings), ranks=3, out=tmp_path / "threads").summary
    found = summary(tmp_path / "run")
    assert found["transport"][:3] == "MPI"
    for name in ("params_sha256", "loss", "test_loss", "accuracy", "averagings", "exchange"):
        assert found[name] == threads[name], name


def test_rows_are_where_a_trial_finds_them_faster(launcher, tmp_path):
    settings = ["train.batch=16", "train.epochs=7", "train.grains=4", "train.reproducible=true", "run.threads=1"]
    config = EXAMPLES / "fm.toml"
    words = [word for setting in settings for word in ("--set", setting)]
    done = program("train", config, "--ranks", 3, "--out", tmp_path / "run", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    found = summary(tmp_path / "run")
    told = re.search(r"rows of tables (\S+) .*because a step of rows by .* takes \S+ ms, by .* \S+ ms", done.stdout)
    assert told, done.stdout
    assert ("push to shards" in found["exchange"]) == (told[1] == "on")
    threads = hpcps.train(read(config, {}, settings), out=tmp_path / "threads").summary
    assert found["params_sha256"] == threads["params_sha256"]


def test_workers_that_share_their_numbers_learn_as_one_does(launcher, tmp_path):
    for ranks in (1, 3):
        done = program("train", EXAMPLES / "online.toml", "--ranks", ranks, "--out", tmp_path / f"{ranks}")
        assert done.returncode == 0, done.stdout + done.stderr
    one, three = summary(tmp_path / "1"), summary(tmp_path / "3")
    assert three["transport"][:3] == "MPI"
    assert three["loss"] == pytest.approx(one["loss"], rel=0.1)
    assert three["accuracy"] == pytest.approx(one["accuracy"], abs=0.05)


def test_a_launcher_starts_the_ranks(launcher, tmp_path, alone):
    settings = ["--set", "train.reproducible=true", "--set", "train.strategy=server"]
    command = ["-m", "hpcps", "train", EXAMPLES / "digits.toml", "--out", tmp_path / "run", *QUICK, *settings]
    done = mpirun(launcher, 3, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(tmp_path / "run")["params_sha256"] == alone["digits"]
    assert done.stdout.count("params_sha256") == 1


def test_an_error_on_all_ranks_is_said_once(launcher, tmp_path):
    command = ["-m", "hpcps", "train", EXAMPLES / "digits.toml", "--out", tmp_path / "run"]
    done = mpirun(launcher, 3, *command, "--set", "data.path=/no/such.csv")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("hpcps: error: ") == 1
    assert "/no/such.csv" in done.stderr
    assert not (tmp_path / "run" / "summary.json").exists()


FAILS = """
import os
import numpy as np

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0")))
calls = 0

def f(params, samples, labels):
    global calls
    calls += 1
    if RANK == 1 and calls == 3:
        raise ValueError("no luck today")
    return 0.0, {"weight": np.zeros((10, 64)), "bias": np.zeros(10)}
"""


@pytest.mark.parametrize("strategy", ["ring", "server"])
def test_an_error_on_one_rank_ends_all_with_its_message(launcher, tmp_path, strategy):
    (tmp_path / "own.py").write_text(FAILS)
    settings = [f"model.kind={tmp_path}/own.py:f", "model.scores=", "run.threads=1", f"train.strategy={strategy}"]
    words = [word for setting in settings for word in ("--set", setting)]
    started = time.monotonic()
    done = program("train", EXAMPLES / "digits_by_hand.toml", "--ranks", 3, "--out", tmp_path / "run", *QUICK, *words)
    assert done.returncode == 2, done.stdout + done.stderr
    own = f"{tmp_path}/own.py:12: ValueError: no luck today"
    assert done.stderr == f"hpcps: error: rank 1, step 3: {own}\n"
    assert not (tmp_path / "run" / "summary.json").exists()
    assert time.monotonic() - started < TIMEOUT_S / 2


def test_a_killed_rank_ends_the_job(launcher, tmp_path):
    """The least that is promised of a lost rank: a prompt end, a status that is not 0, no run that looks finished."""
    (tmp_path / "own.py").write_text(FAILS.replace('raise ValueError("no luck today")', f"os.kill(os.getpid(), {9})"))
    settings = [f"model.kind={tmp_path}/own.py:f", "model.scores=", "run.threads=1"]
    words = [word for setting in settings for word in ("--set", setting)]
    done = program("train", EXAMPLES / "digits_by_hand.toml", "--ranks", 3, "--out", tmp_path / "run", *QUICK, *words)
    assert done.returncode == 3, done.stdout + done.stderr
    lost = r"hpcps: error: (a rank|rank 1) was lost \(signal 9\); the run is not finished\n"
    assert re.search(lost + "$", done.stderr)
    assert not (tmp_path / "run" / "summary.json").exists()


STALLS = (
    FAILS.replace('raise ValueError("no luck today")', "stand_still()")
    + """

def stand_still():
    import signal, time
    STAND
"""
)


@pytest.mark.parametrize(
    ("stand", "is_alive"), [("os.kill(os.getpid(), signal.SIGSTOP)", False), ("time.sleep(600)", True)]
)
@pytest.mark.parametrize("strategy", ["ring", "server"])
def test_a_run_that_stands_still_ends_with_everybodys_stacks(launcher, tmp_path, strategy, stand, is_alive):
    (tmp_path / "own.py").write_text(STALLS.replace("STAND", stand))
    settings = [f"model.kind={tmp_path}/own.py:f", "model.scores=", "run.threads=1", "run.timeout_s=8"]
    words = [word for setting in [*settings, f"train.strategy={strategy}"] for word in ("--set", setting)]
    started = time.monotonic()
    done = program("train", EXAMPLES / "digits_by_hand.toml", "--ranks", 3, "--out", tmp_path / "run", *QUICK, *words)
    assert time.monotonic() - started < TIMEOUT_S
    assert done.returncode == 3, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert lines, done.stdout
    for line in lines:
        assert re.match(r"hpcps: error: .*waited 8 s .*; stacks: .*/run/stall-rank-[02].txt$", line), done.stderr
    assert any("step 3" in line for line in lines), done.stderr
    found = {path.name: path.read_text() for path in (tmp_path / "run").glob("stall-*")}
    assert sorted(found) == [f"stall-rank-{rank}.txt" for rank in ([0, 1, 2] if is_alive else [0, 2])]
    assert any("rank(s) 1 " in text or "rank(s) 1:" in text for text in found.values()), found
    if is_alive:
        assert "in stand_still" in found["stall-rank-1.txt"]
    while left := processes_with(str(tmp_path)):
        assert time.monotonic() - started < TIMEOUT_S, left
        time.sleep(0.1)


NEVER = """
import time

def f(params, samples, labels):
    print("in", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_ranks_end_with_the_program_that_started_them(launcher, tmp_path, number):
    (tmp_path / "own.py").write_text(NEVER)
    settings = [f"model.kind={tmp_path}/own.py:f", "model.scores=", "run.threads=1"]
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "hpcps", "train", EXAMPLES / "digits_by_hand.toml", "--ranks", "2"]
    command += ["--out", tmp_path / "run", *words]
    job = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells have background jobs ignore it
    )
    for line in job.stdout:
        if line.startswith("in"):
            break
    job.send_signal(number)
    if number == signal.SIGTERM:  # the first one asks for a checkpoint, which has to wait for the user's function
        time.sleep(1)
        assert job.poll() is None
        job.send_signal(number)
    assert job.wait(TIMEOUT_S) == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    deadline = time.monotonic() + 30
    while left := processes_with(str(tmp_path)):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    job.communicate(timeout=30)
    assert not (tmp_path / "run" / "summary.json").exists()


def processes_with(word):
    """The processes whose command line holds ``word``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if word in (folder / "cmdline").read_text():
                found.append(folder.name)
        except OSError:
            continue  # it ended meanwhile
    return found


def test_ranks_that_do_not_begin_alike_are_refused(launcher, tmp_path):
    (tmp_path / "own.py").write_text(
        "import os\nimport numpy as np\n\nclass Model:\n"
        "    def init(self, rng): return {'w': np.full(3, os.getpid())}\n"
        "    def loss_gradient(self, params, batch, gradient_out): return 0.0\n"
    )
    words = ["--set", f"model.kind={tmp_path}/own.py:Model", "--set", "model.task=multiclass"]
    done = program("train", write_digits(tmp_path), "--ranks", 2, "--out", tmp_path / "run", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "rank(s) 1 begin with other parameters than rank 0" in done.stderr
    assert done.stderr.count("hpcps: error") == 1  # launchers may have a word of their own to say


def write_digits(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('data.path = "digits"\nmodel.kind = "x.py:y"\n')
    return file


def test_ranks_that_do_not_find_each_other_are_refused(launcher, tmp_path, monkeypatch):
    monkeypatch.setenv("HPCPS_LAUNCHED_RANKS", "4")
    done = program("train", EXAMPLES / "digits.toml", "--out", tmp_path / "run", *QUICK)
    assert done.returncode == 2
    assert "started 4 ranks but" in done.stderr
    assert "sees 1: launcher and library do not match" in done.stderr
    assert not (tmp_path / "run").exists()


def test_doctor_sees_the_ranks(launcher):
    done = mpirun(launcher, 3, "-m", "hpcps", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 on 1 node(s)" in done.stdout
    assert "thread level" in done.stdout
    assert "ends the job; hpcps train --ranks N --survive starts others" in done.stdout
    if len(os.sched_getaffinity(0)) < 3:
        assert "warning: 3 ranks share" in done.stdout


def test_tune_keeps_a_table_that_runs_use(launcher, tmp_path, monkeypatch):
    monkeypatch.setenv("HPCPS_CACHE_DIR", str(tmp_path / "cache"))
    done = program("tune", "--ranks", 2, "--largest", 1024)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = (tmp_path / "cache").glob("allreduce-*.json")
    assert f"kept in {path}" in done.stdout
    assert {name for _, name, _ in json.loads(path.read_text())["timings"]} == {"memory", "ring", "doubling", "mpi"}
    path.write_text(json.dumps({"table": [[2**62, "doubling"]]}))
    run = program("train", EXAMPLES / "digits.toml", "--ranks", 2, "--out", tmp_path / "run", *QUICK)
    assert run.returncode == 0, run.stderr
    assert summary(tmp_path / "run")["exchange"] == "all-reduce: recursive doubling"


def test_tune_wants_ranks(launcher):
    done = program("tune")
    assert done.returncode == 2
    assert "tune: give --ranks N" in done.stderr


def test_an_algorithm_that_cannot_be_used_is_said_once(launcher, tmp_path):
    words = ["--set", "train.algorithm=hierarchical"]
    done = program("train", EXAMPLES / "digits.toml", "--ranks", 2, "--out", tmp_path / "run", *words)
    assert done.returncode == 2
    assert done.stderr.count("there are no several nodes whose ranks share memory") == 1
