"""DistributedDataParallel over hpcps, and hpcps over gloo: ranks are processes that meet in a file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpcps import starter

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'hpcps[torch]'")

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "TORCH.md"
TIMEOUT_S = 240


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def ranks(environment):
    """Start a script on ``size`` processes, with ``arguments(rank)``; all are over at the end."""
    started = []

    def run(size, script, arguments):
        for rank in range(size):
            command = [sys.executable, HERE / script, *arguments(rank)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            started.append(subprocess.Popen([str(word) for word in command], **pipes))
        said = [process.communicate(timeout=TIMEOUT_S)[0] for process in started]
        assert [process.returncode for process in started] == [0] * size, "\n".join(said)
        return said[0]

    yield run
    for process in started:
        process.kill()
        process.wait(TIMEOUT_S)


@pytest.mark.parametrize(("size", "ending"), [(2, "last_wait"), (3, "abort")])
def test_the_transport_keeps_its_promises(ranks, tmp_path, size, ending):
    said = ranks(size, "contract.py", lambda rank: [tmp_path / "store", rank, size, ending])
    assert said.splitlines()[-1].startswith("checked: ")


@pytest.mark.parametrize(
    ("how", "size"),
    [("compare", 2), ("compare", 3), ("gradients", 3), ("refused", 2), ("lost", 2), ("late", 2)],
)
def test_the_hook(ranks, tmp_path, how, size):
    said = ranks(size, "training.py", lambda rank: [how, rank, size, tmp_path / "store"])
    assert said.splitlines()[-1] == "done", said


def mpirun(*command):
    """What two ranks of an MPI launcher print."""
    launcher = starter.find()
    if launcher is None:
        pytest.skip("mpi4py finds no MPI library")
    words = [str(word) for word in (*starter.command_line(launcher, 2), sys.executable, *command)]
    variables = starter.environment(os.environ, 2)
    done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.mpi
def test_the_hook_over_mpi(environment, tmp_path):
    assert mpirun(HERE / "training.py", "mpi", 0, 0, tmp_path / "store").splitlines()[-1] == "done"


def programs():
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)


def test_the_documents_program_runs_under_torchrun(environment, tmp_path):
    (tmp_path / "train.py").write_text(programs()[0])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(re.fullmatch(r"loss ([\d.]+)\n", done.stdout)[1]) < 1e-4


@pytest.mark.mpi
def test_the_documents_lines_for_mpi_run(environment, tmp_path):
    complete, lines = programs()
    start = complete.index('dist.init_process_group("gloo")')
    end = complete.index("torch.manual_seed(dist")
    before = f"import hpcps\nstore, net = {str(tmp_path / 'store')!r}, torch.nn.Linear(3, 1)\ntorch.manual_seed(0)\n"
    (tmp_path / "train.py").write_text(complete[:start] + before + lines + complete[end:])
    assert float(re.fullmatch(r"loss ([\d.]+)\n", mpirun(tmp_path / "train.py"))[1]) < 1e-4
