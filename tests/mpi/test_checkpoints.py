"""Runs over MPI that are killed, or told to stop, and go on with another number of ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hpcps
from hpcps import starter
from hpcps.checkpoint import CheckpointFolder
from hpcps.config import read

EXAMPLES = Path(__file__).parents[2] / "examples"
TIMEOUT_S = 120
SETTINGS = ["train.reproducible=true", "train.epochs=60", "train.batch=100", "run.threads=1"]

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="session")
def launcher():
    found = starter.find()
    if found is None:
        pytest.skip("mpi4py finds no MPI library")
    return found


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """What one process gets."""
    told = read(EXAMPLES / "fm.toml", {}, SETTINGS)
    return hpcps.train(told, out=tmp_path_factory.mktemp("alone") / "run").summary["params_sha256"]


def command(out, *settings):
    words = [word for setting in [*SETTINGS, *settings] for word in ("--set", setting)]
    return [sys.executable, "-m", "hpcps", "train", str(EXAMPLES / "fm.toml"), "--out", str(out), *words]


def until_it_has_come_to(out, step, process):
    """Wait until there is a checkpoint of this step or a later one."""
    deadline = time.monotonic() + TIMEOUT_S
    while CheckpointFolder(out / "checkpoint").steps()[-1:] < [step]:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run(out, ranks, *settings):
    line = [*command(out, *settings), "--ranks", str(ranks)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "summary.json").read_text()), done.stdout


def ranks_of(process, folder):
    """The process ids of the ranks, below a launcher below this process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != process.pid:
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in words and b"-m" in words[:2] and b"HPCPS_LAUNCHED_RANKS=" in environment:
                found.append(int(entry.name))
    return sorted(found)


@pytest.mark.parametrize(
    "settings", [["train.strategy=ring"], ["train.strategy=server"], ["train.strategy=server", "server.colocated=true"]]
)
def test_killed_with_one_rank_and_resumed_with_others(launcher, tmp_path, alone, settings):
    out, more = tmp_path / "run", [*settings, "checkpoint.every_steps=20"]
    line = [*command(out, *more), "--ranks", "3"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until_it_has_come_to(out, 40, process)
        os.kill(ranks_of(process, out)[1], signal.SIGKILL)
        process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 3
    summary, said = run(out, 2, "train.strategy=ring")
    assert summary["params_sha256"] == alone
    assert summary["resumed_from"][0] >= 40
    assert "going on after step " in said


def test_told_to_stop(launcher, tmp_path, alone):
    out, more = tmp_path / "run", ["train.strategy=server", "checkpoint.every_steps=20"]
    line = [*command(out, *more), "--ranks", "3"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until_it_has_come_to(out, 40, process)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 75, said
    assert said.startswith("hpcps: stopped by SIGUSR1 after step ")  # which is what launchers hand on
    assert said.count("\n") == 1
    assert run(out, 2, "train.strategy=server")[0]["params_sha256"] == alone
