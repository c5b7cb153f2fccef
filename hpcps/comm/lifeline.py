"""Ranks that MPI lets go on without those that die, and how they learn of it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hpcps.errors import ERROR, PeerLost

if TYPE_CHECKING:
    from hpcps_kernels.cpu.pulse import Pulse

LOOK_S = 0.005
"""Between two looks at whether a rank has died."""
LIFELINE_TAG = 32000
"""No message has this tag."""
LOOKS = 40
"""At the heartbeats, in the time between two of them. Open MPI may do nothing about them but at every eighth."""
LOOKS_S = 0.05
"""Between two such looks, at the most."""
NO_STATUS = 0
"""MPI_STATUS_IGNORE of Open MPI, the one library that has heartbeats."""
_FOUND = ctypes.c_int()
"""What such a look finds, which nobody reads."""


class Lifeline:
    """By which ranks learn, whatever they wait for, that one of them has died, where the library goes on without it
    (User Level Failure Mitigation: Bland et al., "Post-failure recovery of MPI communication capability", IJHPCA 2013).

    ``mpi``: mpi4py's module; ``comm``: of all ranks. Whoever meets a dead rank revokes all communicators that were made
    of it, which wakes those who wait for somebody else.
    """

    def __init__(self, mpi: Any, comm: Any) -> None:
        self.comms = [comm]
        self._mpi = mpi
        self.spared: frozenset[int] = frozenset()
        """Ranks of which one may die"""
        self._next_s = 0.0

    def check(self) -> None:
        """Raise PeerLost if a rank is known to have died; looks now and then."""
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + LOOK_S
            if self.is_cut():
                raise PeerLost("another rank has died")

    def is_cut(self) -> bool:
        """Whether a rank is known to have died that the others cannot do without."""
        comm, mpi = self.comms[0], self._mpi
        try:
            comm.Iprobe(mpi.ANY_SOURCE, LIFELINE_TAG)
        except mpi.Exception:
            if not self.lost():
                return True
            comm.Ack_failed(1)  # the next look finds others alone
        return bool(comm.Is_revoked())

    def lost(self) -> list[int]:
        """The rank that is known to have died, if it is one alone, and spared."""
        dead = self.dead()
        return dead if len(dead) == 1 and self.spared.issuperset(dead) else []

    def dead(self) -> list[int]:
        """The ranks that are known to have died."""
        comm = self.comms[0]
        dead = comm.Get_failed()
        found = dead.Translate_ranks(list(range(dead.size)), comm.Get_group())
        return [] if found is None else list(found)

    def survivors(self, timeout_s: float) -> Any:
        """A communicator of the ranks that are left, in their order. Blocks until all of them have come here; a rank
        that waits in vain ends itself."""
        comm, mpi = self.comms[0], self._mpi
        with alone_after(timeout_s):
            for one in reversed(self.comms):
                try:
                    one.Revoke()
                except mpi.Exception as error:
                    raise PeerLost(f"the ranks that are left could not be told: {error}") from error
            return comm.Shrink()


def heartbeats(mpi: Any, period_s: float) -> Pulse | None:
    """What has Open MPI send and hear heartbeats, one every ``period_s`` if that is not 0, also while this rank is busy
    elsewhere: to be started after MPI_Init, which is to grant MPI_THREAD_MULTIPLE, and ended before MPI_Finalize.

    The library's own thread for them (5.0.11, ``mpi_ft_detector_thread``) sends the first before all can take it, in
    MPI_Init, which crashes some jobs as they start; and MPI_Finalize waits for it for seconds, if not for ever.
    """
    if not period_s:
        return None
    from hpcps_kernels.cpu.pulse import Pulse  # takes its time

    look = ctypes.cast(ctypes.CDLL(mpi.__file__).MPI_Iprobe, ctypes.c_void_p).value
    alone = ctypes.c_void_p.from_address(mpi._addressof(mpi.COMM_SELF)).value
    assert look
    assert alone
    words = (mpi.ANY_SOURCE, LIFELINE_TAG, alone, ctypes.addressof(_FOUND), NO_STATUS)
    return Pulse(look, words, min(period_s / LOOKS, LOOKS_S))


@contextmanager
def alone_after(seconds: float) -> Iterator[None]:
    """End this rank where what is inside, which waits inside the library, lasts longer."""
    watchdog = threading.Timer(seconds, _end_alone, [seconds])
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def _end_alone(seconds: float) -> None:
    sys.stderr.write(f"{ERROR}the ranks that are left did not meet in {seconds:g} s; ending this one\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)
