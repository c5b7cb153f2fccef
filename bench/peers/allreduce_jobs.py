"""What ``bench/allreduce.py`` compares, and how each contender is started: a job of its own, one process a rank."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

RANK = Path(__file__).with_name("allreduce_rank.py")
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 900
ENDING_S = 10

EAGER = {"btl_sm_eager_limit": 65536, "btl_sm_rndv_eager_limit": 65536, "btl_sm_max_send_size": 131072}
DYNAMIC: dict[str, object] = {"coll": "^han", "coll_tuned_use_dynamic_rules": 1}
SEGMENTED = {"coll_tuned_allreduce_algorithm": 5, "coll_tuned_allreduce_algorithm_segmentsize": 131072}
SEGMENTED_RING: dict[str, object] = {**DYNAMIC, **SEGMENTED}
OPENMPI_TUNED: dict[str, dict[str, object]] = {
    # What was fastest at some size among algorithms 1 to 6, coll sm, segments, eager limits, with CMA and without.
    "segmented ring": SEGMENTED_RING,
    "segmented ring, eager 64 KiB": {**SEGMENTED_RING, **EAGER},
    "Rabenseifner, eager 64 KiB": {**DYNAMIC, "coll_tuned_allreduce_algorithm": 6, **EAGER},
}
MPICH_TUNED: dict[str, dict[str, object]] = {  # the same among its algorithms, buffers and cells of release_gather, CMA
    "release_gather, 256 KiB": {
        "ALLREDUCE_POSIX_INTRA_ALGORITHM": "release_gather",
        "REDUCE_INTRANODE_BUFFER_TOTAL_SIZE": 1 << 18,
        "BCAST_INTRANODE_BUFFER_TOTAL_SIZE": 1 << 18,
    },
    "release_gather, 512 KiB, 8 cells": {
        "ALLREDUCE_POSIX_INTRA_ALGORITHM": "release_gather",
        "REDUCE_INTRANODE_BUFFER_TOTAL_SIZE": 1 << 19,
        "BCAST_INTRANODE_BUFFER_TOTAL_SIZE": 1 << 19,
        "REDUCE_INTRANODE_NUM_CELLS": 8,
        "BCAST_INTRANODE_NUM_CELLS": 8,
    },
    "reduce_scatter_allgather": {
        "ALLREDUCE_POSIX_INTRA_ALGORITHM": "mpir",
        "ALLREDUCE_INTRA_ALGORITHM": "reduce_scatter_allgather",
    },
}

OPENMPI_CROWDED: dict[str, object] = {"mpi_yield_when_idle": 1}
"""With more ranks than cores, for all; Open MPI sets it itself where it knows of it."""
MPICH_CROWDED: dict[str, object] = {"POSIX_POLL_FREQUENCY": 1}
"""With more ranks than cores, among what is tuned: a core is given away after one look, not after a thousand."""
TUNED: dict[str, dict[str, dict[str, object]]] = {"Open MPI": OPENMPI_TUNED, "MPICH": MPICH_TUNED}

Told = dict[str, Any]


class JobError(Exception):
    """A job that cannot be started, or did not end as it should; one line that says why."""


@dataclass(frozen=True)
class Job:
    """One way to sum. ``kind`` is a contender of ``allreduce_rank.py``; ``tuned`` are the MPI library's settings."""

    name: str
    kind: str
    python: str
    flag: str
    tuned: Mapping[str, object] = field(default_factory=dict)

    def run(self, ranks: int, sizes: Sequence[int], dtype: str) -> list[Told]:
        """What each rank saw of the sizes, ranks in order. Blocks. Raises JobError."""
        if not self.python:
            raise JobError(f"not run: give {self.flag}")
        with tempfile.TemporaryDirectory() as folder:
            words = ["--contender", self.kind, "--sizes", ",".join(map(str, sizes)), "--dtype", dtype]
            command = [str(RANK), *words, "--folder", folder]
            Path(folder, "ending").write_bytes(bytes(8))
            start = self._gloo if self.kind == "gloo" else self._mpi
            _run(start(ranks, command, folder))
            return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(ranks)]

    def _gloo(self, ranks: int, command: list[str], folder: str) -> list[_Process]:
        store = {"WORLD_SIZE": str(ranks), "STORE": f"{folder}/store", "GLOO_SOCKET_IFNAME": "lo"}
        return [([self.python, *command], {**environment(), **store, "RANK": str(rank)}) for rank in range(ranks)]

    def _mpi(self, ranks: int, command: list[str], folder: str) -> list[_Process]:
        is_open_mpi = mpi_library(self.python).startswith("Open MPI")
        launcher, own = [mpiexec(self.python)], environment()
        crowded = ranks > len(os.sched_getaffinity(0))
        if is_open_mpi:
            launcher += ["--bind-to", "none", *(["--oversubscribe"] if crowded else [])]
            settings = {**(OPENMPI_CROWDED if crowded else {}), **self.tuned}
            launcher += [word for name, value in settings.items() for word in ("--mca", name, str(value))]
        else:
            settings = {**(MPICH_CROWDED if crowded and self.tuned else {}), **self.tuned}
            own |= {f"MPIR_CVAR_{name}": str(value) for name, value in settings.items()}
        # mpi4py's own runner: an exception on one rank ends all
        return [([*launcher, "-n", str(ranks), self.python, "-m", "mpi4py", *command], own)]


_Process = tuple[list[str], dict[str, str]]


def jobs(python: str, openmpi: str, mpich: str, torch: str) -> list[Job]:
    """All contenders; the interpreters' paths, empty where there is none."""
    found = [
        Job("hpcps", "hpcps", python, "--python"),
        Job("hpcps, plain arrays", "hpcps-plain", python, "--python"),
    ]
    for library, path in zip(TUNED, (openmpi, mpich), strict=True):
        flag = f"--{library.lower().replace(' ', '')}-python, an interpreter with mpi4py and {library}"
        found.append(Job(library, "mpi", path, flag))
        if path:
            found += [Job(f"{library}: {name}", "mpi", path, flag, own) for name, own in TUNED[library].items()]
    found.append(Job("gloo", "gloo", torch, "--torch-python, an interpreter with torch"))
    return [*found, Job("memcpy", "memcpy", python, "--python")]


def environment() -> dict[str, str]:
    """The ranks' environment: this checkout's hpcps, one thread a rank, no other launcher's variables."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PMI", "OMPI_", "PRTE_"))}
    paths = [str(ROOT), str(ROOT / "kernels"), *own.get("PYTHONPATH", "").split(os.pathsep)]
    own |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    if os.geteuid() == 0:  # Open MPI asks root to say twice that it means it
        own |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return own


@cache
def mpi_library(python: str) -> str:
    """The MPI library that the interpreter's mpi4py loads, asked of another process. Raises JobError."""
    code = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
    try:
        told = subprocess.run(
            [python, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobError(f"{python}: {error}") from error
    if told.returncode:
        raise JobError(f"{python}: {last_line(told.stderr)}")
    return told.stdout.split("\n")[0]


def mpiexec(python: str) -> str:
    """The launcher beside the interpreter, else the one on PATH. Raises JobError."""
    beside = Path(python).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise JobError(f"no mpiexec beside {python} or on PATH")
    return found


def last_line(text: str) -> str:
    """Where a program says what went wrong; launchers' rules and frames are left out."""
    lines = [line.strip() for line in text.replace("\0", "").splitlines()]
    told = [line for line in lines if any(letter.isalpha() for letter in line)]
    errors = [line for line in told if "Error" in line or "error:" in line]
    return ((errors or told or ["it said nothing"])[-1])[:200]


def _run(processes: list[_Process]) -> None:
    """Start all and wait for all. Raises JobError."""
    with tempfile.TemporaryFile("w+") as said:
        running: list[subprocess.Popen[bytes]] = []
        try:
            for command, own in processes:
                running.append(
                    subprocess.Popen(
                        command,
                        env=own,
                        stdin=subprocess.DEVNULL,
                        stdout=said,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            statuses = [process.wait(TIMEOUT_S) for process in running]
        except OSError as error:
            raise JobError(str(error)) from error
        except subprocess.TimeoutExpired as error:
            raise JobError(f"not finished after {TIMEOUT_S} s") from error
        finally:
            for process in running:
                _end(process)
        if any(statuses):
            said.seek(0)
            raise JobError(f"exit status {max(statuses, key=abs)}: {last_line(said.read())}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a job that still runs: its launcher is asked first, so that it ends its ranks."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(ENDING_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
