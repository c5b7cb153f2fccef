"""Starts a job again that was lost (``hpcps train --survive``)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from hpcps import starter
from hpcps.comm.launcher import BEGINNING_VARIABLE
from hpcps.config import Run as Options
from hpcps.errors import WARNING, CommError
from hpcps.run_folder import CONFIG, SUMMARY

POLL_S = 0.1
ENDING_S = 10.0
"""Between a job's own end and that of its launcher."""
BEGINNING_S = 60.0
"""Until the ranks of a job have met, at the most."""
SEGMENTS_VARIABLE = "OMPI_MCA_btl_sm_backing_directory"


def supervise(
    found: starter.Launcher,
    ranks: int,
    arguments: Sequence[str],
    words: Sequence[str],
    folder: Path,
    stops: Sequence[str],
    options: Options,
) -> int:
    """:func:`starter.start` ranks that can go on without those that die; where the job has ended without coming to its
    end, start it again, up to ``options.restarts`` times. ``words`` (``--overwrite``) are for the time that begins.

    Ranks that have not met after ``options.timeout_s``, or BEGINNING_S, are ended. Only the job's own word ends this:
    the summary that it leaves in ``folder``, that it was told to stop, that something is the user's to mend. Raises
    CommError as ``start`` does, at the last time.
    """
    mark, has_ever_begun = folder / SUMMARY, _changed(folder / CONFIG)
    is_marked, beginning_s = _changed(mark), min(options.timeout_s, BEGINNING_S)
    for again in range(options.restarts + 1):
        watch = partial(_watch, is_marked, _changed(folder / CONFIG), beginning_s)
        line = arguments if has_ever_begun() else [*arguments, *words]
        try:
            with _segments() as place:
                more = {BEGINNING_VARIABLE: f"{beginning_s:g}", SEGMENTS_VARIABLE: place}
                status = starter.start(found, ranks, line, mark, stops, starter.Surviving(more, watch))
            why = f"the job ended with status {status}"
        except CommError as error:
            if again == options.restarts and not is_marked():
                raise
            status, why = error.exit_status, str(error)
        if is_marked():
            return 0
        if status != CommError.exit_status or again == options.restarts:
            break
        time_of = f"time {again + 1} of {options.restarts}"
        sys.stderr.write(f"{WARNING}{why}; starting it again from the newest checkpoint ({time_of})\n")
        sys.stderr.flush()
    return status


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
def _segments() -> Iterator[str]:
    """A folder for the shared memory of Open MPI's own, which ranks that are killed leave behind."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(
        prefix=f"hpcps-{os.getpid()}-", dir=memory if memory.is_dir() else None, ignore_cleanup_errors=True
    ) as place:
        yield place


def _watch(
    is_marked: Callable[[], bool], has_begun: Callable[[], bool], beginning_s: float, job: subprocess.Popen[str]
) -> None:
    """End a job that has left its mark, or has missed ranks for ``beginning_s`` before it has begun, and does not come
    to its own end: a launcher that has lost a whole host does not, nor one with a rank that stands still."""
    most, marked_s, short_s = 0, 0.0, 0.0
    while job.poll() is None and marked_s < ENDING_S and short_s < beginning_s:
        time.sleep(POLL_S)
        marked_s += POLL_S if is_marked() else 0.0
        if not has_begun():
            here = len(_children(job.pid))
            most = max(most, here)
            short_s += POLL_S if 0 < here < most else 0.0
    if job.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            for process in _children(job.pid):  # which have process groups of their own
                os.kill(process, signal.SIGKILL)
            os.killpg(job.pid, signal.SIGKILL)


def _children(parent: int) -> list[int]:
    """The processes that a process of this machine has started and that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            state, its_parent, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(its_parent) == parent and state != "Z":
                found.append(int(folder.name))
    return found
