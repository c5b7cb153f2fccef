"""Ranks over MPI that are killed: the others go on, or the job is started again, and ends with the same bits."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import faults
import numpy as np
import pytest

from hpcps import starter
from hpcps.run_folder import read_model

pytestmark = pytest.mark.mpi
TIMEOUT_S = 150
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def launcher():
    found = starter.find()
    if found is None:
        pytest.skip("mpi4py finds no MPI library")
    return found


def killed_while_it_trains(case, tmp_path):
    """What an undisturbed run says, and the output and status of one whose ranks are killed when there are checkpoints
    and training goes on, in ``tmp_path / "run"``; and its number."""
    expected, _ = faults.undisturbed(sys.executable, case, tmp_path / "alone")
    out = tmp_path / "run"
    job = subprocess.Popen(
        faults.command(sys.executable, case, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + TIMEOUT_S
    while not list(out.glob("checkpoint/step-*")):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    ranks = faults.ranks_of(out)
    for victim in case.victims:
        os.kill(ranks[victim], signal.SIGKILL)
    text, _ = job.communicate(timeout=TIMEOUT_S)
    assert job.returncode == 0, text
    result = faults.Result()
    faults.judge(case, out, expected, job.returncode, text, result)
    assert not result.wrong, result.problems
    return expected, text, job.pid


@pytest.mark.parametrize(
    "case", [faults.CASES[number] for number in (0, 1, 2, 4, 6, 8, 10)], ids=lambda case: case.name
)
def test_a_run_survives_ranks_that_are_killed_while_it_trains(launcher, tmp_path, case):
    """See ``bench/faults.py`` for random moments."""
    if not launcher.is_open_mpi and case not in faults.CASES[:2]:
        pytest.skip("two cases are enough where a job is started again, whoever dies")
    _, text, job = killed_while_it_trains(case, tmp_path)
    assert "go on from the newest checkpoint" in text if launcher.is_open_mpi else "starting it again" in text
    assert text.count("params_sha256") == 1
    if launcher.is_open_mpi:
        left = case.ranks if faults.REPLACE in case.settings else case.ranks - len(case.victims)
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["ranks"] == left
    assert not list(Path("/dev/shm").glob(f"hpcps-{job}-*"))


@pytest.mark.parametrize("case", [faults.CASES[number] for number in (7, 11)], ids=lambda case: case.name)
def test_a_shard_that_is_killed_is_taken_over_by_its_copy(launcher, tmp_path, case):
    """Training goes on as it was, from no checkpoint, and later checkpoints are whole."""
    if not launcher.is_open_mpi:
        pytest.skip("copies take over under Open MPI alone")
    expected, text, _ = killed_while_it_trains(case, tmp_path)
    (victim,) = case.victims
    assert f"rank {victim} lost; rank {5 - victim} goes on with its copy of shard {victim - 2}" in text
    assert "newest checkpoint" not in text[text.index(faults.TAKEN_OVER) :]
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (found["ranks"], found["lost_ranks"], found["resumed_from"]) == (4, [victim], [])
    (counts,) = found["shards"]  # those of the other
    assert counts["updates"] == expected["shards"][0]["updates"]
    line = [*faults.command(sys.executable, case, tmp_path / "run"), "--resume", "--set", "train.epochs=62"]
    again = subprocess.run(line, timeout=TIMEOUT_S, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    after = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (after["steps"], after["lost_ranks"]) == (expected["steps"] // 60 * 62, [])
    assert after["resumed_from"][0] > expected["steps"] // 2


@pytest.mark.parametrize("stands_still", [False, True])
def test_a_second_loss_after_a_copy_has_taken_over_is_one_like_any_other(launcher, tmp_path, stands_still):
    """The rank that serves both shards is lost: the others go on from the newest checkpoint, one as a shard. Or it
    stands still, which ends the job, and it is started again."""
    if not launcher.is_open_mpi:
        pytest.skip("copies take over under Open MPI alone")
    case = faults.Case("both shards", 5, (), (faults.EXACT, *faults.REPLICAS, "run.timeout_s=4"))
    expected, _ = faults.undisturbed(sys.executable, case, tmp_path / "alone")
    out, lines = tmp_path / "run", []
    line = faults.command(sys.executable, case, out)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        guard = threading.Timer(TIMEOUT_S, job.kill)
        guard.start()
        for line in job.stdout:
            lines.append(line)
            ranks, has_saved = faults.ranks_of(out), bool(list(out.glob("checkpoint/step-*")))
            if faults.TAKEN_OVER in line:
                os.kill(ranks[4], signal.SIGSTOP if stands_still else signal.SIGKILL)
            elif has_saved and 3 in ranks and not any("lost" in line for line in lines):
                os.kill(ranks[3], signal.SIGKILL)
        guard.cancel()
    text = "".join(lines)
    result = faults.Result()
    faults.judge(case, out, expected, job.returncode, text, result)
    assert not result.wrong, result.problems
    assert ("ranks 3, 4 lost" in text) != stands_still
    assert ("starting it again" in text[text.index(faults.TAKEN_OVER) :]) == stands_still
    assert json.loads((out / "summary.json").read_text())["ranks"] == (5 if stands_still else 3)


DIES = """
import os, signal, sys
from pathlib import Path
import numpy as np
HERE, calls = Path(__file__).parent, 0
def f(params, samples, labels):
    global calls
    calls += 1
    deaths = len(list(HERE.glob("dead-*")))
    is_next = "join" in sys.argv if deaths else os.environ["OMPI_COMM_WORLD_RANK"] == "1"
    if calls == 20 and is_next and deaths < 3:
        Path(HERE, f"dead-{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    error = samples @ params["weight"] - labels
    return float((error ** 2).sum()) / 2, {"weight": samples.T @ error}
"""


@pytest.mark.parametrize("checks", ["", "1"])
def test_fresh_ranks_are_replaced_too_as_often_as_it_is_allowed(launcher, tmp_path, checks):
    """Three die one after the other, each in the place of the one before; the third is not replaced."""
    if not launcher.is_open_mpi:
        pytest.skip("ranks are replaced under Open MPI alone")
    (tmp_path / "own.py").write_text(DIES)
    (tmp_path / "data.csv").write_text("\n".join(f"{i % 7},{i % 5},{2 * (i % 7) - i % 5}" for i in range(200)))
    (tmp_path / "c.toml").write_text(
        'data.path = "data.csv"\ndata.label_column = "-1"\n'
        'model.kind = "own.py:f"\nmodel.task = "regression"\nmodel.parameters.weight = [2]\n'
        'optimizer.kind = "sgd"\noptimizer.learning_rate = 0.01\n'
        "train.epochs = 40\ntrain.batch = 40\ntrain.reproducible = true\ntrain.grains = 2\n"
        "checkpoint.every_steps = 7\nrun.threads = 1\nrun.timeout_s = 20\n"
    )
    line = [sys.executable, "-m", "hpcps", "train", str(tmp_path / "c.toml")]
    more = ["--ranks", "2", "--survive", "--set", "run.replace=true", "--set", "run.restarts=2"]
    environment = {**os.environ, "HPCPS_CHECK": checks}
    found = subprocess.run(
        [*line, "--out", str(tmp_path / "run"), *more],
        env=environment,
        timeout=TIMEOUT_S,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert len(list(tmp_path.glob("dead-*"))) == 3
    assert found.stderr.count("1 go on from the newest checkpoint, with 1 fresh rank") == 2
    assert found.stderr.count("go on from the newest checkpoint") == 3
    assert "starting it again" not in found.stderr
    alone = subprocess.run(
        [*line, "--out", str(tmp_path / "alone")], timeout=TIMEOUT_S, capture_output=True, text=True, check=False
    )
    assert alone.returncode == 0, alone.stderr
    told = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "alone")]
    assert told[0]["params_sha256"] == told[1]["params_sha256"]
    assert (told[0]["ranks"], told[0]["steps"]) == (1, told[1]["steps"])


def test_a_job_in_which_a_rank_stands_still_is_ended_and_started_again(launcher, tmp_path):
    case = faults.CASES[-1]
    assert case.stop
    case = replace(case, settings=(*case.settings, "train.epochs=900"))  # all have met when it is struck
    expected, _ = faults.undisturbed(sys.executable, case, tmp_path / "alone")
    out, result = tmp_path / "run", faults.Result()
    faults.one(sys.executable, case, out, 5.0, expected, result)
    assert (result.ended, result.hangs, result.wrong) == (1, 0, 0), result.problems
    own = "left: ['mpich_shm_"  # what MPICH leaves of ranks that are killed
    assert not [problem for problem in result.problems if own not in problem]
    assert result.again == 1 or result.missed == 1, result


def test_a_finished_run_is_refused_and_stays_as_it_is(launcher, tmp_path):
    words = ["--survive", "--ranks", "2", "--set", "train.epochs=2", "--set", "run.threads=1"]
    line = [
        sys.executable,
        "-m",
        "hpcps",
        "train",
        str(EXAMPLES / "digits.toml"),
        "--out",
        str(tmp_path / "run"),
        *words,
    ]
    assert subprocess.run(line, timeout=TIMEOUT_S, capture_output=True, check=False).returncode == 0
    before = (tmp_path / "run" / "summary.json").read_bytes()
    again = subprocess.run(line, timeout=TIMEOUT_S, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "holds a finished run" in again.stderr
    assert (tmp_path / "run" / "summary.json").read_bytes() == before
    anew = subprocess.run([*line, "--overwrite"], timeout=TIMEOUT_S, capture_output=True, text=True, check=False)
    assert anew.returncode == 0, anew.stderr
    assert (tmp_path / "run" / "summary.json").read_bytes() != before


@pytest.mark.parametrize("way", ["ring", "asynchronous"])
def test_a_rank_that_fails_alone_dies_and_the_others_go_on(launcher, tmp_path, way):
    """In the middle of an epoch. Sample i has a one in column i, its gradient counts visits: no sample is lost, none
    comes twice, though the run is not reproducible."""
    if not launcher.is_open_mpi:
        pytest.skip("ranks go on without others under Open MPI alone")
    own = tmp_path / "own.py"
    own.write_text(
        "import os\nimport numpy as np\nfrom pathlib import Path\ncalls = 0\n"
        "def f(params, samples, labels):\n"
        "    global calls\n    calls += 1\n"
        "    if calls == 300 and os.environ['OMPI_COMM_WORLD_RANK'] == '1':\n"
        "        raise RuntimeError('this rank fails')\n"
        "    return 0.0, {'weight': -samples.sum(0)}\n"
    )
    data = tmp_path / "data.csv"
    data.write_text("\n".join(",".join(map(str, row)) + ",0" for row in np.eye(200, dtype=int)))
    (tmp_path / "c.toml").write_text(
        f'data.path = "{data}"\ndata.label_column = "-1"\nmodel.kind = "{own}:f"\nmodel.task = "regression"\n'
        'model.parameters.weight = [200]\noptimizer.kind = "sgd"\noptimizer.learning_rate = 20\n'
        "train.batch = 20\ntrain.epochs = 100\nrun.threads = 1\ncheckpoint.every_steps = 33\n"
    )
    line = [sys.executable, "-m", "hpcps", "train", str(tmp_path / "c.toml"), "--ranks", "4", "--survive"]
    if way == "asynchronous":
        line += ["--set", "train.strategy=server", "--set", "server.staleness=async"]
    done = subprocess.run(
        [*line, "--out", str(tmp_path / "run")], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "this rank fails" in done.stderr
    assert "the other ranks go on" in done.stderr
    assert "3 go on from the newest checkpoint" in done.stderr
    (step,) = json.loads((tmp_path / "run" / "summary.json").read_text())["resumed_from"]
    assert step % 10
    assert (read_model(tmp_path / "run").params["weight"] == 100).all()
