"""A run that stands still: each rank writes down what its threads are doing before the job ends.

A rank that has waited for longer than ``run.timeout_s`` writes ``stall-rank-R.txt`` to the run's folder. The others see
that there is one, also those whose program is in a user's function, and write theirs. The first rank waits for that,
but not long: its error ends the job.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcps.errors import CommTimeout, ConfigError
from hpcps.run_folder import STALLS, stall_name, write_whole, writing

MOST_FRAMES = 50
MOST_CHARACTERS = 1 << 16
LOOKS = 20
"""At the other ranks' files in the time of a timeout; none while steps go on."""
LEAST_LOOK_S, MOST_LOOK_S = 0.05, 5.0
SPARE_S = 1.0


class Watch:
    """Of one rank's run. Without a folder, as while a job is set up, what there is to say goes to standard error.

    ``steps`` tells how many steps the rank has made: as long as that changes, nothing stands still.
    """

    def __init__(self, rank: int, size: int, timeout_s: float) -> None:
        self.steps: Callable[[], int] = int
        self._rank = rank
        self._size = size
        self._timeout_s = timeout_s
        self._look_s = min(max(timeout_s / LOOKS, LEAST_LOOK_S), MOST_LOOK_S)
        self._folder: Path | None = None
        self._before: dict[str, int] = {}
        self._writing = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, name=f"hpcps watch {rank}", daemon=True)
        self._runner = threading.get_ident()
        if size > 1:
            self._thread.start()

    def begin(self, folder: Path) -> None:
        """The run has this folder from now on; what an earlier one has left there does not count."""
        self._before = _files(folder)
        self._folder = folder

    @property
    def has_begun(self) -> bool:
        """Whether the run has its folder."""
        return self._folder is not None

    def end(self) -> None:
        """Watch no more."""
        self._is_over.set()

    def explain(self, error: CommTimeout) -> CommTimeout:
        """The same error, naming where this rank's stacks are. Blocks until the other ranks' are there, too, or will
        not come any more."""
        where = self._write(f"{error}\n\n{''.join(traceback.format_exception(error))}")
        deadline = time.monotonic() + 2 * self._look_s + SPARE_S
        while self._folder is not None and len(self._seen()) < self._size and time.monotonic() < deadline:
            time.sleep(LEAST_LOOK_S)
        told = CommTimeout(f"{error}; stacks: {where}")
        told.known_to_all = error.known_to_all
        return told

    def _look(self) -> None:
        """Until the end, or until another rank has written that it has waited for too long."""
        steps, since = self.steps(), time.monotonic()
        while not self._is_over.wait(self._look_s):
            now = time.monotonic()
            if self.steps() != steps:
                steps, since = self.steps(), now
            elif now - since > self._timeout_s / 2 and (others := self._seen()):
                if stall_name(self._rank) not in others:
                    self._write(f"rank {self._rank} is alive in step {steps + 1}; another has waited for too long")
                return

    def _write(self, reason: str) -> str:
        """Write the reason and all stacks; returns where to."""
        text = f"{reason}\n\n{stacks(self._runner)}"[:MOST_CHARACTERS]
        with self._writing:
            if self._folder is not None:
                path = self._folder / stall_name(self._rank)
                with contextlib.suppress(ConfigError), writing(path):
                    write_whole(path, lambda file: file.write_text(text, "utf-8", "backslashreplace"))
                    return str(path)
            sys.stderr.write("".join(f"rank {self._rank}: {line}\n" for line in text.splitlines()))
            sys.stderr.flush()
        return "see above"

    def _seen(self) -> set[str]:
        """The files of this stall."""
        if self._folder is None:
            return set()
        return {name for name, when in _files(self._folder).items() if self._before.get(name) != when}


@contextmanager
def watched(rank: int, size: int, timeout_s: float) -> Iterator[Watch]:
    """Watch over what is done inside: a CommTimeout of it comes out explained."""
    watch = Watch(rank, size, timeout_s)
    try:
        yield watch
    except CommTimeout as error:
        raise watch.explain(error) from error
    finally:
        watch.end()


def stacks(first: int) -> str:
    """What the Python threads of this process are doing, the one with the identifier ``first`` before the others."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    told = []
    for thread in sorted(frames, key=lambda thread: (thread != first, names.get(thread, ""))):
        if thread != threading.get_ident() or thread == first:
            lines = traceback.format_list(traceback.extract_stack(frames[thread], MOST_FRAMES))
            told.append(f"process {os.getpid()}, thread {names.get(thread, thread)}:\n{''.join(lines)}")
    return "\n".join(told)


def _files(folder: Path) -> dict[str, int]:
    """The ranks' files in a folder, and when they were written."""
    found = {}
    with contextlib.suppress(OSError):
        for path in folder.glob(STALLS):
            with contextlib.suppress(OSError):
                found[path.name] = path.stat().st_mtime_ns
    return found
