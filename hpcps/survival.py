"""Ranks that go on without those that die (``run.survive``, ``hpcps train --survive``).

Whoever has lost one rank has lost nothing but the steps since the newest checkpoint: those who are left meet, take over
its part of the data, or have a fresh process take its place (``run.replace``), and all go on from there. No sample of
an epoch is left out or counted twice, and in a reproducible run the bits are those of a run that lost nobody.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol

import numpy as np

from hpcps import report
from hpcps.comm.launcher import SURVIVORS_VARIABLE
from hpcps.comm.meeting import Meeting
from hpcps.comm.transport import Transport
from hpcps.errors import ERROR, CommError, HpcpsError, PeerLost
from hpcps.run import Run

HEARING_S = 1.0
"""How long after an error a rank may be found to have died."""
CHECKPOINTS_S = 10.0
"""Between two checkpoints of a run that is to survive, if it is not told how many there are to be."""


class Attempts(Protocol):
    """A run, again and again; ``replacements``: how many more times ranks that were lost are replaced."""

    replacements: int

    def has_begun(self) -> bool:
        """Whether the last attempt has begun to write to the run's folder."""

    def greet(self, transport: Transport, nodes: Sequence[str], is_begun: bool) -> None:
        """Tell ranks that have just been started what the job is, and the node of each. A collective."""

    def train(self, transport: Transport, is_begun: bool) -> Run:
        """Train on these ranks; whether the run has begun already. What ranks raise alike is ``known_to_all``."""


def train(transport: Transport, nodes: Sequence[str], attempts: Attempts, is_begun: bool = False) -> Run:
    """Train with the ranks that are there, and again with those that are left, or have come, when some have died.
    ``nodes``: that of each rank.

    Blocks. Raises what an attempt raises if nobody has died, or if so many have that those who are left may be the
    smaller part of a network that was cut in two. A rank that fails by itself says why and dies, and the others go on.
    """
    are_fresh = False
    while True:
        try:
            if are_fresh:
                attempts.greet(transport, nodes, is_begun)
            are_fresh = False
            return attempts.train(transport, is_begun)
        except HpcpsError as error:
            if error.known_to_all or transport.size == 1:
                raise
            if not _has_lost(transport, error):
                if isinstance(error, CommError):  # nobody has died: a rank stands still, which ends the job
                    raise
                die(error)
            why = str(error)
        before = transport
        transport, is_begun = _meet(before, is_begun or attempts.has_begun())
        lost = sorted(set(before.numbers) - set(transport.numbers))
        left = [nodes[rank] for rank in transport.numbers]
        check_majority([nodes[rank] for rank in before.numbers], left)
        # Not where a node has lost all its ranks: it may be gone itself. A node's come together.
        empty = sorted(nodes[rank] for rank in lost if nodes[rank] in left) if attempts.replacements else []
        os.environ[SURVIVORS_VARIABLE] = str(transport.rank)
        if transport.rank == 0:
            ranks = f"rank{'s' * (len(lost) > 1)} {', '.join(map(str, lost))}"
            others = f", with {len(empty)} fresh rank{'s' * (len(empty) > 1)}" if empty else ""
            report.warn(f"{ranks} lost ({why}); {transport.size} go on from the newest checkpoint{others}")
        if empty:
            attempts.replacements -= 1
            try:
                transport, nodes, are_fresh = transport.joined_by(empty), left + empty, True
            except CommError as error:
                if transport.rank == 0:
                    report.warn(f"{error}; {transport.size} go on alone")


def on_threads(attempt: Callable[[int, bool], Run], ranks: int, survives: bool, replacements: int) -> Run:
    """Call ``attempt`` with a number of ranks that are threads of this process; where one of them raises something, and
    the run ``survives``, again with one less, or as many while there are ``replacements``. Raises what the last one
    raises, or what all raise alike."""
    is_begun = False
    while True:
        try:
            return attempt(ranks, is_begun)
        except Exception as error:
            if not survives or ranks == 1 or (isinstance(error, HpcpsError) and error.known_to_all):
                raise
            others = ", with 1 fresh rank" if replacements else ""
            report.warn(f"a rank was lost ({error}); {ranks - 1} go on from the newest checkpoint{others}")
        if replacements:
            replacements -= 1
        else:
            ranks -= 1
        is_begun = True


def _has_lost(transport: Transport, error: HpcpsError) -> bool:
    """Whether a rank has died, which this error may be of: it may take a moment until that is heard of. One that was
    spared, and is missed nevertheless, is met by who sends it something, or waits for it."""
    deadline = time.monotonic() + HEARING_S
    while not (transport.has_lost() or (isinstance(error, PeerLost) and transport.lost())):
        if time.monotonic() > deadline:
            return False
        time.sleep(HEARING_S / 100)
    return True


def die(error: HpcpsError) -> NoReturn:
    """End this rank alone, at once: the others hear of a rank that is killed."""
    sys.stdout.flush()
    sys.stderr.write(f"{ERROR}{error}; the other ranks go on\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    raise error  # for readers; the kernel was asked to end this process


def _meet(transport: Transport, has_begun: bool) -> tuple[Transport, bool]:
    """The ranks that are left, and whether any of them has begun. Raises CommError."""
    while True:
        left = transport.survivors()
        try:
            return left, bool(Meeting(left).gather(np.array([has_begun])).any())
        except CommError as error:
            if not _has_lost(left, error):
                raise
            transport = left


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
