"""A private Slurm with two nodes on this machine, for as long as the tests run.

It needs root and, by Debian's names, slurmctld, slurmd, slurm-client and munge; for ``srun --mpi=pmix`` also libpmix2
and, in its folder, a link ``libpmix.so`` to ``libpmix.so.2``. It listens on the loopback only and leaves nothing.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

NODES, CPUS = 2, 32
"""Virtual nodes, which share the cores of this machine, and the cores that each claims to have."""
TIMEOUT_S = 60
JOB_TIMEOUT_S = 180
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY")

CONFIGURATION = """
ClusterName=hpcps
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
TmpFS={folder}/tmp.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_min_interval=100000,sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
MpiDefault=none
EnforcePartLimits=ALL
MailProg=/bin/true
ReturnToService=2
KillWait=1
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """The commands of a running Slurm. Every wait has a timeout."""

    def __init__(self, folder: Path) -> None:
        foreign = ("SLURM", "SRUN", "SBATCH", "PMI", "OMPI", "PRTE", "HPCPS")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        path = f"{Path(sys.executable).parent}:{clean['PATH']}"
        self.environment = {**clean, "SLURM_CONF": f"{folder}/slurm.conf", "PATH": path}

    def run(self, *command: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command where ``hpcps`` is the one under test; ``variables`` are added to its environment."""
        words = [str(word) for word in command]
        environment = {**self.environment, **variables}
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)

    def ask(self, *command: object, **variables: str) -> str:
        """What a command says that must not fail."""
        done = self.run(*command, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def batch(self, folder: Path, *command: object, **variables: str) -> tuple[str, str]:
        """Submit a batch file from ``folder`` and wait for its end: its state, and what it wrote."""
        job = self.ask("sbatch", "--parsable", f"--chdir={folder}", *command, **variables)
        return self.end(job, folder)

    def end(self, job: str, folder: Path) -> tuple[str, str]:
        """Wait for the end of a job: its state, or those of an array's tasks, and what it wrote to ``folder``."""
        self.until(lambda: set(self.states(job)) <= set(ENDED), f"job {job} has not ended", JOB_TIMEOUT_S)
        logs = sorted(folder.glob(f"*-{job}[._]*out"))
        return " ".join(sorted(self.states(job))), "".join(log.read_text() for log in logs)

    def until(self, condition: Callable[[], bool], complaint: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until ``condition`` holds."""
        until(condition, complaint, timeout_s)

    def states(self, job: str) -> list[str]:
        """The state of a job, or of each task of an array."""
        told = self.ask("scontrol", "--oneliner", "show", "job", job)
        return [part.split()[0] for part in told.split("JobState=")[1:]]


def until(condition: Callable[[], bool], complaint: str, timeout_s: float = TIMEOUT_S) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.05)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    if os.geteuid() != 0:
        pytest.skip("a private Slurm needs root")
    for program in ("slurmctld", "slurmd", "munged", "srun"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path must be short
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _configure(folder)
        running = Slurm(folder)
        _start(folder, running, daemons)
        yield running
        _cancel(running)
    finally:
        _stop(daemons)
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path) -> None:
    folder.chmod(0o755)  # munged wants nobody else to be able to write there
    for name in ("state", *(f"{kind}.n{node}" for kind in ("spool", "tmp") for node in range(1, NODES + 1))):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(1024))
    port = _free_ports(NODES + 1)
    text = CONFIGURATION.format(
        folder=folder,
        host=socket.gethostname().partition(".")[0],
        port=port,
        first=port + 1,
        last=port + NODES,
        nodes=NODES,
        cpus=CPUS,
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # named, so that no mounted tree is looked for


def _free_ports(count: int) -> int:
    """The first of ``count`` ports in a row that nobody listens on."""
    for first in range(26900, 32000, 10):
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _start(folder: Path, running: Slurm, daemons: list[subprocess.Popen[bytes]]) -> None:
    """Start the daemons, as children, and wait until all nodes are ready for work."""

    def start(*command: str) -> None:
        log = folder / f"{command[0]}.out"
        with log.open("ab") as out:
            daemon = subprocess.Popen(
                command,
                env=running.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        daemons.append(daemon)

    munge = {"socket": "munge.sock", "key-file": "munge.key", "pid-file": "munge.pid", "seed-file": "munge.seed"}
    start("munged", "--foreground", "--force", *(f"--{option}={folder}/{name}" for option, name in munge.items()))
    until((folder / "munge.sock").exists, "munged does not start", 10)
    start("slurmctld", "-D", "-c")
    for node in range(1, NODES + 1):
        start("slurmd", "-D", "-N", f"n{node}")
    until(lambda: _idle(running) == NODES, "the nodes are not ready", 20)


def _idle(running: Slurm) -> int:
    return running.run("sinfo", "--noheader", "--Node", "--format=%t").stdout.split().count("idle")


def _cancel(running: Slurm) -> None:
    """End what a test left behind."""
    running.run("scancel", "--user=root")
    until(lambda: _idle(running) == NODES, "jobs do not end", 20)


def _stop(daemons: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the daemons, the last first: munged serves the others."""
    for daemon in reversed(daemons):
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(10)
