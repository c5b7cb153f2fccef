"""hpcps in a Slurm: the batch files as they are shipped, srun, mpirun, and what goes wrong there."""

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import faults
import hpcps_kernels
import pytest

import hpcps
from hpcps import starter
from hpcps.config import read

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits.toml"
BY_HAND = ROOT / "examples" / "digits_by_hand.toml"
QUICK = ("--set", "train.epochs=2", "--set", "train.reproducible=true")
ERROR = "hpcps: error: "
PROMPT_S = 30

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


@pytest.fixture(scope="session")
def mpi():
    """The launcher of the MPI library under test."""
    found = starter.find()
    if found is None:
        pytest.skip("mpi4py finds no MPI library")
    return found


@pytest.fixture(scope="session")
def plugin(mpi):
    """What srun's --mpi must be."""
    return "pmix" if mpi.is_open_mpi else "pmi2"


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """The parameters that one process gets."""
    settings = [word for word in QUICK if word != "--set"]
    run = hpcps.train(read(DIGITS, {}, settings), out=tmp_path_factory.mktemp("alone") / "run")
    return run.summary["params_sha256"]


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def errors(text):
    return [line for line in text.splitlines() if ERROR in line]


# --- the batch files


@pytest.mark.parametrize(("strategy", "ranks", "servers"), [("ring", 4, 0), ("server", 4, 2)])
def test_a_batch_file_trains_as_it_is_shipped(slurm, plugin, alone, tmp_path, strategy, ranks, servers):
    file = ROOT / "slurm" / f"{strategy}.sbatch"
    state, log = slurm.batch(tmp_path, file, DIGITS, "run", *QUICK, HPCPS_MPI=plugin)
    assert state == "COMPLETED", log
    found = summary(tmp_path / "run")
    assert found["params_sha256"] == alone
    assert (found["strategy"], found["ranks"], found["servers"]) == (strategy, ranks, servers)
    assert found["transport"].startswith("MPI"), found
    assert found["threads"] == 8  # --cpus-per-task
    assert log.count(f"params_sha256 {alone}") == 1
    assert len(list(tmp_path.glob(f"hpcps-{strategy}-*.out"))) == 1


def test_an_array_trains_once_a_line(slurm, plugin, tmp_path):
    """The third number has no line."""
    (tmp_path / "sweep.txt").write_text("train.seed=0\ntrain.seed=1 optimizer.learning_rate=0.05\n")
    words = ("--parsable", f"--chdir={tmp_path}", "--array=1-3", ROOT / "slurm" / "array.sbatch")
    job = slurm.ask("sbatch", *words, DIGITS, "out", "sweep.txt", *QUICK, HPCPS_MPI=plugin)
    states, log = slurm.end(job, tmp_path)
    assert states == "COMPLETED COMPLETED FAILED", log
    assert "sweep.txt: no line 3" in log
    found = [read(tmp_path / "out" / number / "config.toml") for number in "12"]
    assert [(config.train.seed, config.optimizer.learning_rate) for config in found] == [(0, 0.1), (1, 0.05)]
    assert {summary(tmp_path / "out" / number)["transport"] for number in "12"} == {"one process"}


def test_a_benchmark_trains_on_more_and_more_ranks(slurm, plugin, alone, tmp_path):
    variables = {"HPCPS_MPI": plugin, "HPCPS_CACHE_DIR": str(tmp_path / "cache"), "HPCPS_TUNE_LARGEST": "1024"}
    if compiled := hpcps_kernels.cache_folder().folder:
        shutil.copytree(compiled, tmp_path / "cache", ignore=shutil.ignore_patterns("allreduce-*"))
    state, log = slurm.batch(tmp_path, ROOT / "slurm" / "benchmark.sbatch", DIGITS, "out", *QUICK, **variables)
    assert state == "COMPLETED", log
    assert re.search(r"^ranks +4 on \d", log, re.M), log
    assert "kept in " in log
    for ranks in (1, 2, 4):
        found = summary(tmp_path / "out" / str(ranks))
        assert (found["ranks"], found["params_sha256"]) == (ranks, alone)
        assert f'{ranks} ranks: "samples_per_s": {found["samples_per_s"]}' in log


def test_a_slurm_without_gpus_refuses_the_batch_file_for_gpus(slurm, tmp_path):
    done = slurm.run("sbatch", "--parsable", f"--chdir={tmp_path}", ROOT / "slurm" / "gpu.sbatch", DIGITS, "run")
    assert done.returncode != 0
    assert "Invalid generic resource (gres) specification" in done.stderr


def test_a_batch_file_for_a_configuration_is_submitted(slurm, mpi, alone, tmp_path):
    asked = ("--nodes", 2, "--ntasks-per-node", 2, "--cpus-per-task", 3, "--time", 5, "--submit")
    there = ("bash", "-c", 'cd "$0" && "$@"', tmp_path)
    program = (*there, sys.executable, "-m", "hpcps", "slurm", DIGITS, "--file", "job.sbatch")
    said = slurm.ask(*program, *asked, "--out", tmp_path / "run", *QUICK)
    job = re.fullmatch(r"job.sbatch: submitted as job (\d+)", said).group(1)
    state, log = slurm.end(job, tmp_path)
    assert state == "COMPLETED", log
    found = summary(tmp_path / "run")
    assert (found["ranks"], found["threads"], found["params_sha256"]) == (4, 3, alone)


# --- stopped before its time is up, and back to the queue

STAND_IN = """#!{python}
import os, pathlib, signal, sys, time

rank, again = os.environ["SLURM_PROCID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))

def stop(number, frame):
    time.sleep(0.2 * int(rank))  # the others have ended by then
    sys.exit(int(os.environ["STOPS_WITH"]))

signal.signal(signal.SIGUSR1, stop)
print("attempt", again, "rank", rank, *sys.argv[1:], flush=True)
pathlib.Path(f"ready-{{again}}-{{rank}}").touch()
if not again:
    time.sleep(60)
"""


def stop(slurm, folder, status):
    """Tell a job of four stand-ins for hpcps to stop, which they do with ``status``; its number."""
    (folder / "bin").mkdir()
    (folder / "bin" / "hpcps").write_text(STAND_IN.format(python=sys.executable))
    (folder / "bin" / "hpcps").chmod(0o755)
    variables = {"HPCPS_MPI": "none", "PATH": f"{folder}/bin:{slurm.environment['PATH']}", "STOPS_WITH": str(status)}
    file = ROOT / "slurm" / "ring.sbatch"
    job = slurm.ask("sbatch", "--parsable", f"--chdir={folder}", file, "c.toml", "out", **variables)
    slurm.until(lambda: len(list(folder.glob("ready-0-*"))) == 4, "the ranks do not begin")
    (folder / "began").touch()
    slurm.ask("scancel", "--signal=USR1", "--batch", job)
    return job


def begin_again(slurm, job, folder):
    """Wait until a job is back in the queue, and for its end: its state and its log."""
    slurm.until(lambda: slurm.states(job) == ["PENDING"] and (folder / "began").exists(), "it is not back in the queue")
    assert not list(folder.glob(".hpcps-again*"))
    time.sleep(1)
    slurm.ask("scontrol", "update", f"jobid={job}", "StartTime=now+2")  # Slurm would hold it for two minutes
    return slurm.end(job, folder)


def test_ranks_that_stop_with_a_checkpoint_go_on_after_a_requeue(slurm, tmp_path):
    job = stop(slurm, tmp_path, 75)
    state, log = begin_again(slurm, job, tmp_path)
    assert state == "COMPLETED", log
    command = "train c.toml --out out --set train.strategy=ring"
    for attempt in (0, 1):
        assert sorted(re.findall(f"attempt {attempt} rank (\\d) {command}", log)) == ["0", "1", "2", "3"], log
    assert not list(tmp_path.glob("ready-2-*"))


def test_ranks_that_fail_after_the_signal_are_not_requeued(slurm, tmp_path):
    job = stop(slurm, tmp_path, 2)
    state, log = slurm.end(job, tmp_path)
    assert state == "FAILED", log
    assert not list(tmp_path.glob("ready-1-*"))


@pytest.mark.parametrize("strategy", ["ring", "server", "survive", "gpu", "array", "benchmark"])
def test_a_batch_file_says_what_it_is_to_be_given(slurm, tmp_path, strategy):
    file = tmp_path / f"{strategy}.sbatch"
    text = (ROOT / "slurm" / file.name).read_text()
    file.write_text(
        re.sub("#SBATCH --(gpus|array).*", "", text).replace("%A_%a", "%j")
    )  # there are none, one is enough
    state, log = slurm.batch(tmp_path, file, DIGITS)
    assert state == "FAILED"
    assert f"usage: sbatch {strategy}.sbatch CONFIG.toml OUT" in log


# --- ranks that go on without others


LONG = ("train.reproducible=true", "train.epochs=150", "checkpoint.every_steps=50", "run.threads=1", "run.timeout_s=20")


@pytest.fixture(scope="session")
def alone_for_long(tmp_path_factory):
    """The parameters that one process gets."""
    run = hpcps.train(read(DIGITS, {}, LONG), out=tmp_path_factory.mktemp("alone") / "run")
    return run.summary["params_sha256"]


def survive(slurm, folder, *more):
    """Submit the shipped batch file, and wait until there is a checkpoint: the job."""
    shared = "run.heartbeat_s=10"  # the nodes share two cores
    words = [word for setting in (*LONG, shared, *more) for word in ("--set", setting)]
    variables = {"OMPI_MCA_btl_sm_backing_directory": str(folder)}
    file = ROOT / "slurm" / "survive.sbatch"
    job = slurm.ask("sbatch", "--parsable", f"--chdir={folder}", file, DIGITS, folder / "run", *words, **variables)
    slurm.until(lambda: list((folder / "run").glob("checkpoint/step-*")), "no checkpoint is written", 120)
    return job


def test_a_job_survives_a_rank_that_is_killed(slurm, mpi, alone_for_long, tmp_path):
    """Open MPI starts another one in its place, on its node; with MPICH the job is started again."""
    job = survive(slurm, tmp_path, "run.replace=true")
    os.kill(faults.ranks_of(tmp_path / "run")[1], signal.SIGKILL)
    state, log = slurm.end(job, tmp_path)
    assert state == "COMPLETED", log
    found = summary(tmp_path / "run")
    assert (found["ranks"], found["params_sha256"]) == (4, alone_for_long)
    assert found["resumed_from"]
    assert "go on from the newest checkpoint, with 1 fresh rank" in log or not mpi.is_open_mpi, log
    assert "starting it again" in log or mpi.is_open_mpi, log


def test_a_job_that_lost_the_launcher_of_a_node_ends_well(slurm, mpi, alone_for_long, tmp_path):
    """Open MPI's ends the ranks, and they are started again; MPICH's leaves them, and they go on."""
    job = survive(slurm, tmp_path)
    name = "prted" if mpi.is_open_mpi else "hydra_pmi_proxy"
    parents = {faults.parent_of(rank) for rank in faults.ranks_of(tmp_path / "run").values()}
    daemons = [one for one in parents if Path(f"/proc/{one}/cmdline").read_text().split("\0")[0].endswith(name)]
    os.kill(daemons[0], signal.SIGKILL)
    state, log = slurm.end(job, tmp_path)
    assert state == "COMPLETED", log
    assert "starting it again from the newest checkpoint (time 1 of 3)" in log or not mpi.is_open_mpi
    found = summary(tmp_path / "run")
    assert (found["ranks"], found["params_sha256"]) == (4, alone_for_long)


def test_a_job_that_survives_goes_back_to_the_queue(slurm, mpi, alone_for_long, tmp_path):
    job = survive(slurm, tmp_path)
    slurm.ask("scancel", "--signal=USR1", "--batch", job)
    (tmp_path / "began").touch()
    state, log = begin_again(slurm, job, tmp_path)
    assert state == "COMPLETED", log
    assert log.count("hpcps: stopped by SIGUSR1 after step ") == 1, log
    found = summary(tmp_path / "run")
    assert (found["ranks"], found["params_sha256"]) == (4, alone_for_long)


FAILS = """
import os
import numpy as np

calls = 0

def f(params, samples, labels):
    global calls
    calls += 1
    if os.environ["SLURM_PROCID"] == "1" and calls == 3:
        raise ValueError("no luck today")
    return 0.0, {"weight": np.zeros((10, 64)), "bias": np.zeros(10)}
"""


def fail(slurm, plugin, folder, source):
    """Train with a function that fails on rank 1 by the shipped batch file: the job's state, log and seconds."""
    (folder / "own.py").write_text(source)
    settings = (f"model.kind={folder}/own.py:f", "model.scores=", "run.threads=1", "train.epochs=1")
    words = [word for setting in settings for word in ("--set", setting)]
    # What a killed rank leaves behind in shared memory is to lie in the test's own folder.
    variables = {"HPCPS_MPI": plugin, "OMPI_MCA_btl_sm_backing_directory": str(folder)}
    started = time.monotonic()
    state, log = slurm.batch(folder, ROOT / "slurm" / "ring.sbatch", BY_HAND, "run", *words, **variables)
    assert not (folder / "run" / "summary.json").exists(), log
    return state, log, time.monotonic() - started


def test_a_task_that_fails_ends_the_job_with_its_message(slurm, plugin, tmp_path):
    state, log, seconds = fail(slurm, plugin, tmp_path, FAILS)
    assert state == "FAILED", log
    assert errors(log) == [f"{ERROR}rank 1, step 3: {tmp_path}/own.py:11: ValueError: no luck today"], log
    assert seconds < PROMPT_S


STOPS = """
import os
import signal
import time
import numpy as np

calls = 0

def f(params, samples, labels):
    global calls
    calls += 1
    if not os.path.exists("run/checkpoint"):
        time.sleep(0.002)
        if os.environ["SLURM_PROCID"] == "1" and calls == 40:
            os.kill(os.getpid(), signal.SIGTERM)
    residual = params["weight"] - samples.mean()
    return float((residual**2).sum()), {"weight": 2 * residual, "bias": np.zeros(10)}
"""


def test_a_job_that_is_told_to_stop_goes_on_when_it_comes_again(slurm, plugin, tmp_path):
    """Though one rank alone has heard of it. The batch file requeues it."""
    (tmp_path / "own.py").write_text(STOPS)
    settings = (f"model.kind={tmp_path}/own.py:f", "model.scores=", "run.threads=1", "train.epochs=60")
    words = [word for setting in settings for word in ("--set", setting)]
    variables = {"HPCPS_MPI": plugin, "OMPI_MCA_btl_sm_backing_directory": str(tmp_path)}
    file = ROOT / "slurm" / "ring.sbatch"
    job = slurm.ask("sbatch", "--parsable", f"--chdir={tmp_path}", file, BY_HAND, "run", *words, **variables)
    slurm.until((tmp_path / "run" / "checkpoint").exists, "no checkpoint is written")
    (tmp_path / "began").touch()
    state, log = begin_again(slurm, job, tmp_path)
    assert state == "COMPLETED", log
    assert log.count("hpcps: stopped by SIGTERM after step ") == 1, log
    assert "the same command, with --out run, goes on" in log
    assert len(summary(tmp_path / "run")["resumed_from"]) == 1


def test_a_task_that_is_killed_ends_the_job(slurm, plugin, tmp_path):
    """By the batch file's --kill-on-bad-exit: with MPICH the other ranks would wait for run.timeout_s."""
    kill = FAILS.replace('raise ValueError("no luck today")', "os.kill(os.getpid(), 9)")
    assert "os.kill" in kill
    state, log, seconds = fail(slurm, plugin, tmp_path, kill)
    assert state == "FAILED", log
    assert re.search(r"task.* 1: (Killed|Exited with exit code 137)", log), log
    assert seconds < PROMPT_S


# --- srun and the MPI library do not understand each other


def refused(done, folder):
    """The one line that says why a job of two ranks does not begin."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert not (folder / "run").exists()
    (line,) = errors(done.stdout + done.stderr)
    return line


def train_by_srun(slurm, folder, plugin, *before):
    command = ("hpcps", "train", DIGITS, "--out", folder / "run", *QUICK)
    return slurm.run("srun", "--nodes=2", "--ntasks=2", f"--mpi={plugin}", *before, *command)


def library(mpi):
    return "Open MPI" if mpi.is_open_mpi else "MPICH"


def test_srun_without_a_plugin_is_refused_once(slurm, mpi, tmp_path):
    line = refused(train_by_srun(slurm, tmp_path, "none"), tmp_path)
    assert line.startswith(f"{ERROR}srun started 2 ranks but {library(mpi)} "), line
    assert " sees 1: " in line
    assert "--mpi=pmix for Open MPI" in line
    assert "--mpi=pmi2 for MPICH" in line


def test_srun_with_the_plugin_of_the_other_library_is_refused_once(slurm, mpi, tmp_path):
    other = "pmi2" if mpi.is_open_mpi else "pmix"
    line = refused(train_by_srun(slurm, tmp_path, other), tmp_path)
    assert line.startswith(f"{ERROR}srun started 2 ranks but {library(mpi)} "), line
    assert "--mpi=pmix for Open MPI" in line
    assert "--mpi=pmi2 for MPICH" in line


def test_the_refusal_is_heard_though_srun_ends_all_with_the_first(slurm, mpi, tmp_path):
    """As under the batch files' --kill-on-bad-exit. The first rank, which speaks, comes last."""
    late = ("bash", "-c", 'if [ "$SLURM_PROCID" = 0 ]; then sleep 1; fi; exec "$@"', "late")
    done = train_by_srun(slurm, tmp_path, "none", "--kill-on-bad-exit=1", *late)
    assert done.returncode != 0
    (line,) = errors(done.stdout + done.stderr)
    assert line.startswith(f"{ERROR}srun started 2 ranks but {library(mpi)} "), line


# --- other ways to start inside of an allocation


def write_job(folder, *lines):
    file = folder / "job.sbatch"
    file.write_text("\n".join(["#!/usr/bin/env bash", "#SBATCH --nodes=2 --ntasks=2", "set -euo pipefail", *lines]))
    return file


def test_a_batch_script_without_srun_is_one_process(slurm, alone, tmp_path):
    """SLURM_NTASKS and SLURM_PROCID are set there, but nobody has started ranks."""
    job = write_job(tmp_path, 'echo "tasks $SLURM_NTASKS, rank $SLURM_PROCID"', 'hpcps train "$@" --out run')
    state, log = slurm.batch(tmp_path, job, DIGITS, *QUICK)
    assert state == "COMPLETED", log
    assert "tasks 2, rank 0" in log
    found = summary(tmp_path / "run")
    assert (found["ranks"], found["transport"], found["params_sha256"]) == (1, "one process", alone)


def test_one_task_of_srun_needs_no_mpi(slurm, mpi, tmp_path):
    """Such as the shell of srun --pty, whatever plugin it was started with."""
    other = "pmi2" if mpi.is_open_mpi else "pmix"
    done = slurm.run(
        "srun", "--ntasks=1", f"--mpi={other}", "hpcps", "train", DIGITS, "--out", tmp_path / "run", *QUICK
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(tmp_path / "run")["transport"] == "one process"


def test_mpirun_and_ranks_take_the_allocation(slurm, mpi, alone, tmp_path):
    """mpirun as a user writes it, and the one that --ranks finds; both start one rank a virtual node."""
    # The nodes share the cores of this machine, and each has its rank 0: let none be bound, and waiting ranks yield.
    shared = "--bind-to none --mca mpi_yield_when_idle 1" if mpi.is_open_mpi else ""
    job = write_job(
        tmp_path,
        "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
        f"{mpi.program} {shared} bash -c 'echo \"node $SLURMD_NODENAME\"'",
        f'{mpi.program} {shared} {sys.executable} -m hpcps train "$@" --out mpirun',
        'hpcps train "$@" --ranks 2 --out ranks',
    )
    state, log = slurm.batch(tmp_path, job, DIGITS, *QUICK)
    assert state == "COMPLETED", log
    assert {"node n1", "node n2"} <= set(re.findall(r"node n\d", log))
    for run in ("mpirun", "ranks"):
        found = summary(tmp_path / run)
        assert (found["ranks"], found["params_sha256"]) == (2, alone), run
        assert found["transport"].startswith("MPI"), run
