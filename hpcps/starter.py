"""Starts MPI ranks for ``--ranks N``: finds the launcher that belongs to mpi4py's library and calls it."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hpcps import hosts, report
from hpcps.banners import Banners
from hpcps.comm.launcher import FORWARDED, RANKS_VARIABLE, TERMINAL_VARIABLE, library_name
from hpcps.errors import CommError, ConfigError
from hpcps.hosts import Host

PROBE_TIMEOUT_S = 60
ENDING_S = 10
ANSWER_S = 10.0
ASKED = 3
"""How often, in ANSWER_S, a host is asked whether it answers."""
POLL_S = 0.1
LEFT_S = 1.0
"""How long what a job has left behind may still say something."""
MARK = b"hpcps-answers"
KNOWN_STATUSES = (0, 1, 2, 3, 75, 130)
FAILED_STATUS = 213
"""Of Open MPI's launcher where it fails as it starts"""
FOLDER_SETTINGS = tuple(f"PRTE_MCA_prte_{name}" for name in ("tmpdir_base", "local_tmpdir_base", "top_session_dir"))
"""Where Open MPI's launcher keeps its files, on all hosts or on this one"""
FOLDER_IS_SET = "MCA param prte_tmpdir_base was specified"
ENDED_STATUSES = (0, 2, 3, 75, 130)  # a rank that ends with 1 says why; a launcher that cannot reach a host does not
ULFM = ["--with-ft", "ulfm"]
PERIODS = 3  # heartbeats, at least, in the time after which a rank counts as dead
HANDED_ON = ("HPCPS_", "PYTHON", "NUMBA_", "OMP_")
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


class Surviving(NamedTuple):
    """What else a job takes whose ranks can go on without those that die: variables, somebody who ends it where its
    launcher does not, how long a rank on another host may not be heard of, and a folder for the launcher's files: those
    of one that is killed are in the way of a later one that the system gives the same number."""

    environment: dict[str, str]
    watch: Callable[[subprocess.Popen[str]], None]
    heartbeat_s: float
    place: Path


@dataclass(frozen=True)
class Launcher:
    """An ``mpiexec``, the library it belongs to, and whether that is Open MPI (else it is of the MPICH family)."""

    program: str
    library: str
    is_open_mpi: bool

    @property
    def goes_on(self) -> bool:
        """Whether its ranks can go on without those that die: Open MPI's, from version 5 on.

        >>> Launcher("mpirun", "Open MPI v5.0.8", True).goes_on, Launcher("mpirun", "Open MPI v4.1.6", True).goes_on
        (True, False)
        """
        version = re.search(r"v(\d+)", self.library)
        return self.is_open_mpi and version is not None and int(version[1]) >= 5


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
            return Launcher(program, library, wanted)
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
    return library_name(probe.stdout) if probe.returncode == 0 else None


def start(
    found: Launcher,
    ranks: int,
    arguments: Sequence[str],
    mark: Path | None,
    stops: Sequence[str] = (),
    surviving: Surviving | None = None,
    on: Sequence[Host] = (),
) -> int:
    """Run ``python -m hpcps ARGUMENTS`` on ``ranks`` ranks and wait for its end. Returns its exit status.

    The job ends with this process: it is told to when this one is interrupted, terminated or killed; the signals
    ``stops`` (``TERM``) are handed on instead, so that it may come to its own end. Raises CommError if ranks were lost,
    or if the launcher says that all is well but ``mark``, which the job leaves last, is not there. ``surviving``: of
    ranks that can go on without those that die. ``on``: which hosts; else those that the launcher finds itself.
    A launcher that fails before the job has made the folder of ``mark`` is started once more, with another folder for
    its own files.
    """
    own = {} if surviving is None else _launchers_folder(str(surviving.place))
    job, told = _run(found, ranks, arguments, stops, surviving, on, own)
    if own and told.is_alone and FOLDER_IS_SET in told.words:  # in a file of the system's
        job, told = _run(found, ranks, arguments, stops, surviving, on, {})
    elif job.returncode == FAILED_STATUS and told.is_alone and mark is not None and not mark.parent.exists():
        report.warn(f"{told.lost(job.returncode)}; starting it again")
        with tempfile.TemporaryDirectory(prefix="hpcps-", ignore_cleanup_errors=True) as folder:
            job, told = _run(found, ranks, arguments, stops, surviving, on, _launchers_folder(folder))
    if job.returncode not in ENDED_STATUSES and not told.explained:
        raise CommError(told.lost(job.returncode))
    if job.returncode == 0 and mark is not None and not mark.exists():
        raise CommError(f"{found.program} ended without an error, but {mark.parent} is not finished: ranks were lost")
    return job.returncode if job.returncode in KNOWN_STATUSES else CommError.exit_status


def _run(
    found: Launcher,
    ranks: int,
    arguments: Sequence[str],
    stops: Sequence[str],
    surviving: Surviving | None,
    on: Sequence[Host],
    more: Mapping[str, str],
) -> tuple[subprocess.Popen[str], Banners]:
    """The job, which has ended, and what has come from it. ``more``: variables."""
    inner = environment(os.environ, ranks) | ({} if surviving is None else surviving.environment) | dict(more)
    line = command_line(found, ranks, None if surviving is None else surviving.heartbeat_s, on, inner)
    outer = {signal.SIGTERM: signal.signal(signal.SIGTERM, _raise_terminated)}
    try:
        with subprocess.Popen(
            [*line, sys.executable, "-m", "hpcps", *arguments],
            env=inner,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that a terminal's Ctrl-C comes here alone, and once
            preexec_fn=partial(_end_with_parent, found.is_open_mpi),
        ) as job:
            hand_on = _HandOn(job)
            for number in (signal.Signals[f"SIG{name}"] for name in stops):
                outer.setdefault(number, signal.signal(number, hand_on))
            if surviving is not None:
                threading.Thread(target=surviving.watch, args=[job], name="hpcps watch", daemon=True).start()
            told = _pass_on(job)
    finally:
        for number, handler in outer.items():
            signal.signal(number, handler)
    return job, told


def _launchers_folder(folder: str) -> dict[str, str]:
    """The variable by which Open MPI's launcher keeps its files there; none where the user has said where."""
    return {} if any(name in os.environ for name in FOLDER_SETTINGS) else {FOLDER_SETTINGS[1]: folder}


def _pass_on(job: subprocess.Popen[str]) -> Banners:
    """Print the ranks' error lines as they come; an interrupt ends the job in bounded time."""
    told = Banners()
    try:
        for line in told.without(_lines(job)):
            print(line, end="", file=sys.stderr, flush=True)
        job.wait()
    except BaseException:
        job.terminate()
        try:
            job.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
        raise
    return told


def _lines(job: subprocess.Popen[str]) -> Iterator[str]:
    """What comes from the job's standard error until it has ended. What it has left behind there, the remote shell of a
    host that cannot be reached, is not waited for."""
    assert job.stderr is not None
    stream, rest, ending = job.stderr.fileno(), b"", math.inf
    while time.monotonic() < ending:
        if select.select([stream], [], [], POLL_S)[0]:
            more = os.read(stream, 1 << 16)
            if not more:
                break
            *lines, rest = (rest + more).split(b"\n")
            yield from (f"{line.decode(errors='replace')}\n" for line in lines)
        if ending == math.inf and job.poll() is not None:
            ending = time.monotonic() + LEFT_S
    if rest:
        yield rest.decode(errors="replace")


def end(job: subprocess.Popen[Any]) -> None:
    """Kill a launcher, and what it has started on this machine, if it has not ended. Its own children may be others'
    parents (MPICH's), and a rank that was stopped does not end by itself when they do."""
    if job.poll() is None:
        for process in descendants(job.pid):  # which have process groups of their own
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)


def children(parent: int) -> list[int]:
    """The processes that a process of this machine has started and that have not ended."""
    return [process for process, its_parent in _parents().items() if its_parent == parent]


def descendants(ancestor: int) -> list[int]:
    """Those, and what they have started, and so on."""
    parents, found = _parents(), [ancestor]
    for one in found:
        found += [process for process, its_parent in parents.items() if its_parent == one]
    return found[1:]


def _parents() -> dict[int, int]:
    """The parent of each process of this machine that has not ended."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            state, parent, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if state != "Z":
                found[int(folder.name)] = int(parent)
    return found


def answers(found: Launcher, host: Host) -> bool:
    """Whether the launcher can start something on a host now. Blocks, for ANSWER_S at the most. A host that has not
    answered in a part of that is asked again beside it, for launchers at times stand still as they start, and so is
    one where it fails, for a job that has just been lost may be in the way."""
    asked: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="hpcps-", ignore_cleanup_errors=True) as place:
        heard = [Path(place) / str(number) for number in range(ASKED)]
        try:
            for said in heard:
                asked.append(_ask(found, host, said))
                ending = time.monotonic() + ANSWER_S / ASKED
                while time.monotonic() < ending:
                    if any(MARK in one.read_bytes() for one in heard[: len(asked)]):
                        return True
                    time.sleep(POLL_S)
            return False
        finally:
            for job in asked:
                end(job)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    job.wait(ENDING_S)


def _ask(found: Launcher, host: Host, said: Path) -> subprocess.Popen[bytes]:
    """Have a host say MARK into a file. Launchers that are at work side by side get folders of their own, which they
    would else take from each other."""
    folder = said.with_suffix(".d")
    folder.mkdir()
    inner = environment(os.environ, 1) | {"TMPDIR": str(folder)}
    line = [*command_line(found, 1, on=[host], inner=inner), "echo", MARK.decode()]
    with said.open("wb") as out:
        return subprocess.Popen(
            line, env=inner, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL, start_new_session=True
        )


class _HandOn:
    """Tells the job to come to its own end when a signal comes; a second SIGTERM ends it at once."""

    def __init__(self, job: subprocess.Popen[str]) -> None:
        self._job = job
        self._has_told = False

    def __call__(self, number: int, frame: object) -> None:
        if self._has_told and number == signal.SIGTERM:
            _raise_terminated(number, frame)
        self._has_told = True
        self._job.send_signal(signal.Signals[f"SIG{FORWARDED}"])


def _raise_terminated(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _end_with_parent(is_open_mpi: bool) -> None:
    """In the child, a launcher: ask the kernel for a signal when the parent dies, however it dies (Linux). MPICH's
    hands a SIGTERM on to ranks, which may take it for a word to stop in their own time; if it is killed, they end."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM if is_open_mpi else signal.SIGKILL)


def command_line(
    found: Launcher,
    ranks: int,
    heartbeat_s: float | None = None,
    on: Sequence[Host] = (),
    inner: Mapping[str, str] | None = None,
) -> list[str]:
    """The launcher and its options. Ranks are not bound to cores, so that they share those of the machine.
    ``heartbeat_s``: of ranks that can go on without those that die. ``inner``: their environment, of which Open MPI
    itself hands but its own variables to other hosts."""
    places = hosts.words(on, found.is_open_mpi)
    if found.is_open_mpi:
        ulfm = [*ULFM, *(_detector(heartbeat_s) if len(on) > 1 else [])] if heartbeat_s and found.goes_on else []
        # Only where it is needed: told that cores are shared, Open MPI yields them at every test of a message.
        shared = ["--oversubscribe"] if not on and ranks > len(os.sched_getaffinity(0)) else []
        handed = [word for name in sorted(inner or {}) if on and name.startswith(HANDED_ON) for word in ("-x", name)]
        return [found.program, *ulfm, *shared, *places, *handed, "--bind-to", "none", "-n", str(ranks)]
    return [found.program, *places, "-n", str(ranks)]


def _detector(heartbeat_s: float) -> list[str]:
    """Of hosts that are cut off; ranks that die are seen without it."""
    settings = {
        "mpi_ft_detector": "true",
        "mpi_ft_detector_thread": "false",  # ranks have one of their own: see comm.mpi
        "mpi_ft_detector_period": f"{heartbeat_s / PERIODS:.3g}",
        "mpi_ft_detector_timeout": f"{heartbeat_s:g}",
        "mpi_ft_propagator_with_rbcast": "true",  # else only the rank that is cut off notices
        "mpi_yield_when_idle": "true",  # else ranks that share cores keep each other from being heard of
    }
    return [word for name, value in settings.items() for word in ("--mca", name, value)]


def environment(outer: Mapping[str, str], ranks: int) -> dict[str, str]:
    """The ranks' environment. Open MPI asks root to say twice that it means it: whoever starts hpcps as root does."""
    own = {name: value for name, value in outer.items() if not name.startswith("PMI")}  # an srun's, around us
    inner = {**own, RANKS_VARIABLE: str(ranks), TERMINAL_VARIABLE: str(int(sys.stdout.isatty()))}
    if "SLURM_JOB_ID" in outer:
        inner["SLURM_OVERLAP"] = "1"  # what a lost job has left behind is not waited for
    if os.geteuid() == 0:
        inner |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return inner


def _is_open_mpi(program: str) -> bool | None:
    try:
        told = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "Open MPI" in told.stdout or "OpenRTE" in told.stdout or "prte" in told.stdout.lower()
