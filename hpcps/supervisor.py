"""Starts a job again that was lost (``hpcps train --survive``)."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from hpcps import hosts, report, starter
from hpcps.comm.launcher import BEGINNING_VARIABLE, ENDING, MET, PLACE_VARIABLE, told_status
from hpcps.config import Run as Options
from hpcps.errors import CommError
from hpcps.hosts import Host
from hpcps.run_folder import CONFIG, SUMMARY

POLL_S = 0.1
ENDING_S = 5.0
"""Between a job's own end, or its wish to end, and that of its launcher."""
ASKED_AT_ONCE = 16
BEGINNING_S = 60.0
"""Until the ranks of a job have met, at the most."""
LAUNCHING_S = 300.0
"""Until ranks on several hosts have met, the launcher's start and theirs taken together, at the most."""
MISSING_S = 2.0
"""How long a job is waited for that has lost a rank before all have met: it may be about to say why."""
MEMORY = Path("/dev/shm")
LEFT_S = 60.0
"""How long nothing new has come to a folder of a job that is removed when nobody holds it."""
SEGMENTS_VARIABLE = "OMPI_MCA_btl_sm_backing_directory"


def supervise(
    found: starter.Launcher,
    ranks: int,
    arguments: Sequence[str],
    words: Sequence[str],
    folder: Path,
    stops: Sequence[str],
    options: Options,
    on: Sequence[Host] = (),
) -> int:
    """:func:`starter.start` ranks that can go on without those that die; where the job has ended without coming to its
    end, start it again, up to ``options.restarts`` times. ``words`` (``--overwrite``) are for the time that begins.

    Ranks that wait for the others to start end after ``options.timeout_s``, or BEGINNING_S. Only the job's own word
    ends this: the summary that it leaves in ``folder``, that it was told to stop, that something is the user's to mend.
    Where hosts are known (``on``), those that do not answer any more are left out. Raises CommError as ``start`` does,
    at the last time, or where more than half of the hosts are gone.
    """
    mark, has_ever_begun = folder / SUMMARY, _changed(folder / CONFIG)
    is_marked, beginning_s = _changed(mark), min(options.timeout_s, BEGINNING_S)
    all_hosts = on
    for again in range(options.restarts + 1):
        if again and all_hosts:
            on = _left(found, all_hosts)
            ranks = min(ranks, hosts.room(on))
        has_begun = _changed(folder / CONFIG)
        line = arguments if has_ever_begun() else [*arguments, *words]
        ended: list[str] = []
        with _place() as place:
            more = {BEGINNING_VARIABLE: f"{beginning_s:g}", PLACE_VARIABLE: str(place)}
            more |= {} if on else {SEGMENTS_VARIABLE: str(place)}  # launchers of other hosts see to theirs
            launching_s = LAUNCHING_S if _begins_here(on) else math.inf
            watch = partial(_watch, place, is_marked, has_begun, launching_s, ended)
            try:
                surviving = starter.Surviving(more, watch, options.heartbeat_s, place)
                status = starter.start(found, ranks, line, mark, stops, surviving, on)
                why = f"the job ended with status {status}"
            except CommError as error:
                wished = told_status(place)
                status, why = error.exit_status if wished is None else wished, ended[0] if ended else str(error)
                if again == options.restarts and status == error.exit_status and not is_marked():
                    raise CommError(why) from error
        if is_marked():
            return 0
        if status != CommError.exit_status or again == options.restarts:
            break
        time_of = f"time {again + 1} of {options.restarts}"
        report.warn(f"{why}; starting it again from the newest checkpoint ({time_of})")
    return status


def _left(found: starter.Launcher, all_hosts: Sequence[Host]) -> list[Host]:
    """The hosts that answer. Raises CommError where they are fewer than half, for the others may be alive, and go on:
    those who are half, or less, end by themselves."""
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        answers = list(pool.map(partial(starter.answers, found), all_hosts))
    left = [host for host, is_here in zip(all_hosts, answers, strict=True) if is_here]
    gone = ", ".join(host.name for host in all_hosts if host not in left)
    if 2 * len(left) < len(all_hosts):
        raise CommError(f"{len(left)} of {len(all_hosts)} hosts can be reached from here; {gone} may go on without it")
    if gone:
        report.warn(f"{gone} cannot be reached, and will be left out")
    return left


def _changed(path: Path) -> Callable[[], bool]:
    """Tells whether a file is there and was not, or is another, when this was called."""
    before = _written(path)
    return lambda: _written(path) not in (None, before)


def _written(path: Path) -> int | None:
    """When a file was written; None where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


@contextmanager
def _place() -> Iterator[Path]:
    """A folder of a job: also for what launchers and ranks that are killed leave behind, of Open MPI's own. Folders
    whose supervisors were killed are removed."""
    parent = MEMORY if MEMORY.is_dir() else Path(gettempdir())
    for folder in parent.glob("hpcps-*-*"):
        _remove_if_left(folder)
    prefix = f"hpcps-{os.getpid()}-"
    with TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as place, _opened(place) as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as long as this process lives
        yield Path(place)


def _remove_if_left(folder: Path) -> None:
    """Remove a job's folder that nobody holds any more, unless it may be a new one that nobody holds yet."""
    with suppress(OSError), _opened(folder) as found:  # held, another user's, or gone
        if time.time() - os.fstat(found).st_mtime > LEFT_S:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


@contextmanager
def _opened(folder: Path | str) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _begins_here(on: Sequence[Host]) -> bool:
    """Whether rank 0 of ranks on these hosts is on this machine, where it can tell that all have met."""
    name = socket.gethostname()
    return bool(on) and on[0].name in (name, name.partition(".")[0], "localhost", os.environ.get("SLURMD_NODENAME"))


def _watch(
    place: Path,
    is_marked: Callable[[], bool],
    has_begun: Callable[[], bool],
    launching_s: float,
    ended: list[str],
    job: subprocess.Popen[str],
) -> None:
    """End a job that does not come to its own end, and say why in ``ended``: it has left its mark or asked for its end,
    which a launcher that has lost a host waits for; or it has missed ranks for MISSING_S before all have met, while the
    others wait for them; or they have not met after ``launching_s``, for launchers at times stand still as they start.
    """
    most, ending_s, short_s, unmet_s = 0, 0.0, 0.0, 0.0
    while job.poll() is None:
        time.sleep(POLL_S)
        ending_s += POLL_S if is_marked() or (place / ENDING).exists() else 0.0
        if not ((place / MET).exists() or has_begun()):
            here = len(starter.children(job.pid))
            most = max(most, here)
            short_s += POLL_S if 0 < here < most else 0.0
            unmet_s += POLL_S
        limits = (
            (ending_s, ENDING_S, "the launcher did not end with its job"),
            (short_s, MISSING_S, "a rank was lost before all had met"),
            (unmet_s, launching_s, f"the ranks had not met after {launching_s:g} s"),
        )
        ended += [why for seconds, most_s, why in limits if seconds >= most_s]
        if ended:
            starter.end(job)
            return
