"""Batch files for Slurm: those to be copied are what the template makes, and those written for a configuration."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hpcps import cli, slurm
from hpcps.errors import ConfigError

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits.toml"


def test_the_files_to_be_copied_are_those_of_the_template():
    found = {path.name: path.read_text() for path in (ROOT / "slurm").iterdir()}
    assert found == slurm.shipped(), "python -m hpcps.slurm slurm"


@pytest.mark.parametrize("name", slurm.shipped())
def test_bash_and_shellcheck_understand_them(name):
    subprocess.run(["bash", "-n", ROOT / "slurm" / name], check=True, timeout=60)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--exclude=SC2016", ROOT / "slurm" / name], check=True, timeout=60)


def write(capsys, folder, *options, config=DIGITS):
    """The command's status, what it says, and the file."""
    file = folder / "job.sbatch"
    words = ["slurm", config, "--mpi", "pmi2", "--file", file, "--out", folder / "a run", *options]
    status = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out + said.err, file.read_text() if file.exists() else ""


def test_a_file_for_a_configuration(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["--nodes", 2, "--ntasks-per-node", 3, "--cpus-per-task", 4, "--time", "1-00:00:00", "--partition", "long"]
    status, said, text = write(capsys, tmp_path, *asked, "--set", "optimizer.learning_rate=0.5")
    assert status == 0, said
    assert said == f"{tmp_path}/job.sbatch: submit it by sbatch {tmp_path}/job.sbatch\n"
    for line in ("nodes=2", "ntasks-per-node=3", "cpus-per-task=4", "time=1-00:00:00", "partition=long"):
        assert f"#SBATCH --{line}\n" in text
    assert f"\nconfig={DIGITS}\nout='{tmp_path}/a run'\ncd {tmp_path}\n" in text
    assert "\nmpi=${HPCPS_MPI:-pmi2}\n" in text
    assert '"$out" --set optimizer.learning_rate=0.5 "$@" &' in text
    assert "--signal=B:USR1@120" in text
    status, said, _ = write(capsys, tmp_path)
    assert (status, "exists already" in said) == (2, True)
    status, _, text = write(capsys, tmp_path, "--overwrite", "--time", "5", "--set", "train.strategy=server")
    assert status == 0
    assert "--signal=B:USR1@30" in text
    assert "--distribution=cyclic" in text
    subprocess.run(["bash", "-n", tmp_path / "job.sbatch"], check=True, timeout=60)


@pytest.mark.parametrize("asked", [["--survive"], ["--set", "run.survive=true"]])
def test_a_configuration_that_survives_is_started_by_hpcps(capsys, tmp_path, asked):
    status, said, text = write(capsys, tmp_path, "--nodes", 2, *asked)
    assert status == 0, said
    assert "\n#SBATCH --no-kill\n" in text
    assert 'hpcps train "$config" --out "$out" --ranks "$SLURM_NTASKS" --survive --set run.survive=true "$@" &' in text
    assert "srun" not in text
    subprocess.run(["bash", "-n", tmp_path / "job.sbatch"], check=True, timeout=60)


def test_a_training_for_each_number(capsys, tmp_path):
    status, _, text = write(capsys, tmp_path, "--array", "1-8%2")
    assert status == 0
    assert "#SBATCH --array=1-8%2\n#SBATCH --output=%x-%A_%a.out\n" in text
    assert '--set train.seed="$SLURM_ARRAY_TASK_ID"' in text


def test_a_training_for_each_line(capsys, tmp_path):
    sweep = tmp_path / "sweep.txt"
    sweep.write_text("train.seed=1\ntrain.seed=2 optimizer.learning_rate=0.2\n")
    status, _, text = write(capsys, tmp_path, "--sweep", sweep)
    assert status == 0
    assert "#SBATCH --array=1-2\n" in text
    assert f"\nsweep={sweep}\n" in text
    for content, culprit in (("train.seed=1\ntrain.sed=2\n", "line 2: "), ("a=1\n\n", "line 1"), ("", "is empty")):
        sweep.write_text(content)
        status, said, _ = write(capsys, tmp_path, "--sweep", sweep, "--overwrite")
        assert status == 2
        assert f"hpcps: error: {sweep}" in said
        assert culprit in said
        assert said.count("\n") == 1


def test_ranks_on_gpus_have_one_thread(capsys, tmp_path):
    status, said, text = write(capsys, tmp_path, "--gpus", "4", "--cpus-per-task", "8")
    assert status == 0, said
    assert "#SBATCH --gpus=4\n" in text
    assert "export HPCPS_RUN_THREADS=1\n" in text
    assert "--set run.device=cuda" in text


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (["--time", "soon"], "--time: 'soon' is no time"),
        (["--time", "0"], "--time: '0' is no time"),
        (["--partition", "a\nb"], "--partition: 'a\\nb' cannot be handed to sbatch"),
        (["--set", "train.epoch=2"], "train.epoch"),
        (["--gpus", "4", "--set", "train.strategy=averaging"], "run.device = 'cuda' with train.strategy"),
        (["--nodes", "3", "--set", "train.batch=2"], "train.batch = 2 is fewer than 3 workers"),
        (["--nodes", "9", "--set", "train.reproducible=true", "--set", "train.grains=8"], "fewer than 9 workers"),
        (["--nodes", "2", "--set", "train.strategy=server", "--set", "server.count=2"], "leaves no worker"),
        (["--sweep", "/no/such/file"], "/no/such/file: cannot be read"),
        (["--file", "/no/such/folder/a.sbatch"], "/no/such/folder/a.sbatch: cannot write there"),
    ],
)
def test_a_mistake_is_one_line(capsys, tmp_path, options, culprit):
    status, said, text = write(capsys, tmp_path, *options)
    assert (status, text) == (2, "")
    assert said.startswith("hpcps: error: ")
    assert said.count("\n") == 1
    assert culprit in said


SBATCH = '#!/bin/sh\n[ "$1" = --parsable ] && [ -f "$2" ] && echo "{}" {}\n'


@pytest.mark.parametrize(
    ("content", "status", "culprit"),
    [
        (SBATCH.format("77", ""), 0, "job.sbatch: submitted as job 77"),
        (SBATCH.format("no such partition", ">&2; exit 1"), 2, "--submit: no such partition; "),
        ("", 2, "there is no sbatch on PATH"),
    ],
)
def test_submitting(capsys, tmp_path, monkeypatch, content, status, culprit):
    (tmp_path / "bin").mkdir()
    if content:
        (tmp_path / "bin" / "sbatch").write_text(content)
        (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    got, said, text = write(capsys, tmp_path, "--submit")
    assert got == status, said
    assert culprit in said
    assert text


def test_the_plugin_is_that_of_the_library(monkeypatch):
    for library, wanted in (("Open MPI v5.0.8", "pmix"), ("MPICH 5.0.2", "pmi2"), (None, "pmix")):
        monkeypatch.setattr(slurm.starter, "probe_library", lambda library=library: library)
        assert slurm.plugin() == wanted


def test_times_that_slurm_does_not_know():
    for time in ("", "1:", "1:2:3:4", "-1", "1-", "1 day", "０"):
        with pytest.raises(ConfigError, match="is no time"):
            slurm.seconds(time)


# --- the script's own part, with stand-ins for srun, scontrol and hpcps


STAND_INS = {
    # Like srun it hands signals on to all processes of its tasks.
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\nset -m\n"$@" &\ntask=$!\n'
    'trap "kill -USR1 -- -$task" USR1\nwait $task; status=$?\n'
    '[ "$status" -le 128 ] || { wait $task; status=$?; }\nexit "$status"\n',
    "scontrol": 'echo "$*" >>"$CALLS"\n',
    "hpcps": 'echo "hpcps $*" >>"$CALLS"\ntrap "exit $STATUS" USR1\n[ -n "$STAYS" ] || exit "$STATUS"\n'
    '[ -z "$TELL" ] || kill -USR1 "$BATCH"\nfor i in $(seq 100); do sleep 0.1; done\n',
}


def run_script(folder, status, stays="", tell=""):
    """The batch file with stand-ins: its status, and what they were called with."""
    folder.mkdir(exist_ok=True)
    for name, text in STAND_INS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (folder / name).chmod(0o755)
    calls = folder / "calls"
    calls.write_text("")
    inside = {"SLURM_JOB_ID": "5", "SLURM_CPUS_PER_TASK": "3", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1"}
    inside |= {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(calls), "STATUS": str(status), "STAYS": stays}
    text = (ROOT / "slurm" / "ring.sbatch").read_text().replace("sleep 60", "true")
    job = folder / "job"
    job.write_text(text.replace("set -euo pipefail", "set -euo pipefail\nexport BATCH=$$"))
    done = subprocess.run(
        ["bash", job, "c.toml", "out"],
        env={**os.environ, **inside, "TELL": tell},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not list(folder.glob(".hpcps-again*"))
    return done.returncode, calls.read_text().splitlines()


TRAIN = "hpcps train c.toml --out out --set train.strategy=ring"


@pytest.mark.parametrize("status", [0, 1, 2, 3, 130])
def test_a_status_is_handed_on(tmp_path, status):
    assert run_script(tmp_path / "a", status) == (status, [TRAIN])


def test_a_run_that_was_told_to_stop_goes_back_to_the_queue(tmp_path):
    assert run_script(tmp_path / "a", 75) == (75, [TRAIN, "requeue 5"])


@pytest.mark.parametrize("status", [75, 2, 0])
def test_the_signal_is_handed_on_and_the_status_waited_for(tmp_path, status):
    expected = [TRAIN, "requeue 5"] if status == 75 else [TRAIN]
    assert run_script(tmp_path / "a", status, stays="yes", tell="yes") == (status, expected)
