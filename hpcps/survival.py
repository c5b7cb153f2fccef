"""Ranks that go on without those that die (``run.survive``, ``hpcps train --survive``).

Whoever has lost one rank has lost nothing but the steps since the newest checkpoint: those who are left meet, take over
its part of the data, and all go on from there. No sample of an epoch is left out or counted twice, and in a
reproducible run the bits are those of a run that lost nobody.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from hpcps import report
from hpcps.comm.launcher import SURVIVORS_VARIABLE
from hpcps.comm.meeting import Meeting
from hpcps.comm.memory import node_names
from hpcps.comm.transport import Transport
from hpcps.errors import ERROR, CommError, HpcpsError, PeerLost
from hpcps.run import Run

HEARING_S = 1.0
"""How long after an error a rank may be found to have died."""
CHECKPOINTS_S = 10.0
"""Between two checkpoints of a run that is to survive, if it is not told how many there are to be."""

Train = Callable[[Transport, bool], Run]
"""Trains on these ranks; whether the run has begun already. What ranks raise alike is ``known_to_all``."""


def train(transport: Transport, attempt: Train, has_begun: Callable[[], bool]) -> Run:
    """Call ``attempt`` with the ranks that are there, and again with those that are left when some have died.

    ``has_begun``: whether the last attempt has begun to write to the run's folder. Blocks. Raises what an attempt
    raises if nobody has died, or if so many have that those who are left may be the smaller part of a network that was
    cut in two. A rank that fails by itself says why and dies, and the others go on.
    """
    nodes, is_begun = node_names(transport), False
    while True:
        try:
            return attempt(transport, is_begun)
        except HpcpsError as error:
            if error.known_to_all or transport.size == 1:
                raise
            if not _has_lost(transport):
                if isinstance(error, CommError):  # nobody has died: a rank stands still, which ends the job
                    raise
                _die(error)
            why = str(error)
        transport, is_begun = _go_on(transport, nodes, has_begun(), why)


def on_threads(attempt: Callable[[int, bool], Run], ranks: int, survives: bool) -> Run:
    """Call ``attempt`` with a number of ranks that are threads of this process; where one of them raises something, and
    the run ``survives``, again with one less. Raises what the last one raises, or what all raise alike."""
    is_begun = False
    while True:
        try:
            return attempt(ranks, is_begun)
        except Exception as error:
            if not survives or ranks == 1 or (isinstance(error, HpcpsError) and error.known_to_all):
                raise
            report.warn(f"a rank was lost ({error}); {ranks - 1} go on from the newest checkpoint")
        ranks, is_begun = ranks - 1, True


def _has_lost(transport: Transport) -> bool:
    """Whether a rank has died: it may take a moment until that is heard of."""
    deadline = time.monotonic() + HEARING_S
    while not transport.has_lost():
        if time.monotonic() > deadline:
            return False
        time.sleep(HEARING_S / 100)
    return True


def _die(error: HpcpsError) -> None:
    """End this rank alone, at once: the others hear of a rank that is killed."""
    sys.stdout.flush()
    sys.stderr.write(f"{ERROR}{error}; the other ranks go on\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def _go_on(transport: Transport, nodes: Sequence[str], has_begun: bool, why: str) -> tuple[Transport, bool]:
    """The ranks that are left, and whether any of them has begun. Raises CommError where they are too few."""
    while True:
        left = transport.survivors()
        try:
            told = Meeting(left).gather(np.array([has_begun]))
        except CommError:
            if not _has_lost(left):
                raise
            transport = left
            continue
        lost = sorted(set(transport.numbers) - set(left.numbers))
        check_majority([nodes[rank] for rank in transport.numbers], [nodes[rank] for rank in left.numbers])
        os.environ[SURVIVORS_VARIABLE] = str(left.rank)
        if left.rank == 0:
            ranks = f"rank{'s' * (len(lost) > 1)} {', '.join(map(str, lost))}"
            report.warn(f"{ranks} lost ({why}); {left.size} go on from the newest checkpoint")
        return left, bool(told.any())


def check_majority(before: Sequence[str], left: Sequence[str]) -> None:
    """Raise PeerLost unless ranks on more than half of the nodes are ``left``, or some on all: the others may be alive,
    behind a link that was cut, and go on, too.

    >>> check_majority(["a", "a", "b", "c"], ["a", "b"])
    """
    nodes, still = set(before), set(left)
    if still != nodes and 2 * len(still) <= len(nodes):
        gone = ", ".join(sorted(nodes - still))
        error = PeerLost(
            f"all ranks of {gone} were lost, and no more than half of the nodes are left: they may go on there"
        )
        error.known_to_all = True
        raise error
