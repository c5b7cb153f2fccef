"""Starts MPI ranks for ``--ranks N``: finds the launcher that belongs to mpi4py's library and calls it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcps.comm.launcher import RANKS_VARIABLE, TERMINAL_VARIABLE
from hpcps.errors import ERROR, CommError, ConfigError
from hpcps.run_folder import SUMMARY

PROBE_TIMEOUT_S = 60


@dataclass(frozen=True)
class Launcher:
    """An ``mpiexec`` and whether it is Open MPI's (else it is of the MPICH family)."""

    program: str
    is_open_mpi: bool


def find() -> Launcher | None:
    """The launcher of the MPI library that mpi4py loads; None where mpi4py finds no library.

    Raises ConfigError if there is a library but no launcher of its own.
    """
    library = probe_library()
    if library is None:
        return None
    wanted = "Open MPI" in library
    beside = Path(sys.executable).parent
    candidates = [str(beside / name) for name in ("mpiexec", "mpirun")]
    candidates += [path for name in ("mpiexec", "mpirun") if (path := shutil.which(name))]
    for program in candidates:
        if Path(program).exists() and _is_open_mpi(program) == wanted:
            return Launcher(program, wanted)
    raise ConfigError(
        f"mpi4py loads {library}, but no mpiexec of it is in {beside} or on PATH; "
        "add it to PATH, or use --set run.transport=threads"
    )


def probe_library() -> str | None:
    """The name of the library that mpi4py loads, asked of another process, for MPI starts once in a process."""
    code = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
    try:
        probe = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    return " ".join(probe.stdout.split(",")[0].split()) if probe.returncode == 0 else None


def start(found: Launcher, ranks: int, arguments: Sequence[str], folder: Path) -> int:
    """Run ``python -m hpcps ARGUMENTS`` on ``ranks`` ranks and wait for its end. Returns its exit status.

    Raises CommError if the launcher says that all is well but the run's folder is not finished.
    """
    command = [*command_line(found, ranks), sys.executable, "-m", "hpcps", *arguments]
    with subprocess.Popen(command, env=environment(os.environ, ranks), stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        try:
            for line in without_banners(job.stderr):
                print(line, end="", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            job.send_signal(signal.SIGINT)
            raise
    status = job.returncode
    if status == 0 and not (folder / SUMMARY).exists():
        raise CommError(f"{found.program} ended without an error, but {folder} is not finished: ranks were lost")
    return status if status >= 0 else 128 - status


def command_line(found: Launcher, ranks: int) -> list[str]:
    """The launcher and its options. Ranks are not bound to cores, so that they share those of the machine."""
    if found.is_open_mpi:
        # Only where it is needed: told that cores are shared, Open MPI yields them at every test of a message.
        shared = ["--oversubscribe"] if ranks > len(os.sched_getaffinity(0)) else []
        return [found.program, *shared, "--bind-to", "none", "-n", str(ranks)]
    return [found.program, "-n", str(ranks)]


def environment(outer: Mapping[str, str], ranks: int) -> dict[str, str]:
    """The ranks' environment. Open MPI asks root to say twice that it means it: whoever starts hpcps as root does."""
    inner = {**outer, RANKS_VARIABLE: str(ranks), TERMINAL_VARIABLE: str(int(sys.stdout.isatty()))}
    if os.geteuid() == 0:
        inner |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return inner


def without_banners(lines: Iterable[str]) -> Iterator[str]:
    """The ranks' lines. What the launcher adds about ranks that ended is given only if no rank said why."""
    held: list[str] = []
    explained = inside = False
    for raw in lines:
        line = raw.replace("\0", "")  # Open MPI's launcher ends what it says with one
        is_rule = len(line) > 40 and set(line.strip()) <= {"-", "="} and bool(line.strip())
        if is_rule or inside or line.startswith(("Abort(", "application called MPI_Abort")):
            held.append(line)
            inside = inside != is_rule
        else:
            explained = explained or line.startswith(ERROR)
            if line:
                yield line
    if not explained:
        yield from held


def _is_open_mpi(program: str) -> bool | None:
    try:
        told = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "Open MPI" in told.stdout or "OpenRTE" in told.stdout or "prte" in told.stdout.lower()
