"""What launchers add to what the ranks say on standard error."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Iterator

from hpcps.errors import ERROR

WORDS = 400  # letters of a launcher's words that are passed on
NOISE = "[warn] Epoll "
"""Open MPI's launcher says so of ranks' connections that have ended before it had: of no use to anybody."""


class Banners:
    """Tells the ranks' lines from what the launcher adds about ranks that ended."""

    def __init__(self) -> None:
        self.explained = False
        self.is_alone = True
        """Whether nothing has come but the launcher's own"""
        self._held: list[str] = []

    def without(self, lines: Iterable[str]) -> Iterator[str]:
        """The ranks' lines. The launcher's are held back; ``explained`` tells whether a rank said what was wrong."""
        inside = False
        for raw in lines:
            line = raw.replace("\0", "")  # Open MPI's launcher ends what it says with one
            if line.startswith(NOISE):
                continue
            is_rule = len(line) > 40 and bool(line.strip()) and set(line.strip()) <= {"-", "="}
            if is_rule or inside or line.startswith(("Abort(", "application called MPI_Abort", "YOUR APPLICATION")):
                self._held.append(line)
                inside = inside != is_rule
            else:
                self.explained = self.explained or line.startswith(ERROR)
                self.is_alone &= not line.strip()
                if line:
                    yield line

    @property
    def words(self) -> str:
        """What the launcher has said, in one line."""
        return " ".join(re.sub("-{9,}|=+", " ", " ".join(self._held)).split())

    def lost(self, status: int) -> str:
        """One line for a job that ended with ``status`` though no rank said why: the launcher's words, if none is of a
        rank."""
        text = self.words
        rank = re.search(r"rank (\d+)", text, re.IGNORECASE)
        number = re.search(r"signal:? (\d+)|EXIT CODE: (\d+)", text, re.IGNORECASE)
        who = f"rank {rank.group(1)}" if rank else "a rank"
        signalled = status - 128 if status > 128 else abs(status)  # MPICH's launcher ends with the signal's own number
        is_signal = signalled != 1 and signalled in {int(known) for known in signal.Signals}
        if text and not (rank or number or is_signal):
            short = text if len(text) <= WORDS else f"{text[:WORDS]}..."
            return f"the launcher ended with status {status} ({short}); the run is not finished"
        how = f"signal {signalled}" if is_signal else f"the launcher's status is {status}"
        how = f"signal {number.group(1) or number.group(2)}" if number else how
        return f"{who} was lost ({how}); the run is not finished"
