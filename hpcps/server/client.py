"""The worker's side of the parameter server: what it can do, wherever the shards are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from hpcps.comm.transport import Array
from hpcps.server.messages import (
    Counts,
)
from hpcps.snapshot import Pieces, Snapshot
from hpcps.sums import Summed


class Traffic(NamedTuple):
    """What a worker has had to do with shards so far."""

    waited_s: float
    sent_bytes: int
    received_bytes: int
    requests: int
    gradient_rows: int = 0
    pushed_rows: int = 0
    """Of gradients, and of pushes; where rows are kept back"""
    dropped: int = 0
    """Pushes that came too late, over all shards"""
    skipped: int = 0
    """Steps that this worker has left out"""


class Client(Protocol):
    """A worker's connection to all shards. Not thread-safe; a push, then a pull, then the next push.

    ``slack``: how many steps of any other worker the parameters may miss; -1: any number. With ``slack`` 0 a gradient
    is added to the other workers' of its step, else it is applied at once; it may be another in each step.
    """

    def push(self, step: int, gradient: Summed, slack: int = 0) -> None:
        """Start to push the gradient of ``step`` (from 1). Does not block. It may not be changed before the pull."""

    def pull(self, step: int, keys: Mapping[str, Array] | None, slack: int = 0) -> int:
        """Make this worker's parameters contain ``step``: dense ones, and of each table the rows ``keys`` (distinct);
        if None no rows, but all workers' steps up to this one, whatever the slack. Returns the newest step that some
        shard has come to: more than ``step`` where others went on without this worker, see :meth:`go_on`. Blocks.
        Raises CommTimeout, PeerLost, CommError."""

    def go_on(self, step: int, keys: Mapping[str, Array] | None) -> None:
        """After a pull that returned ``step``, a later one than it was asked for: go on from there. The parameters of
        all shards contain it then, and of each table these rows, if given. Blocks."""

    def fetch(self, keys: Mapping[str, Array]) -> None:
        """Get the rows ``keys`` as they are when all workers' steps up to this one's last are in them. Blocks."""

    def meet(self) -> None:
        """Block until all workers have come here, serving where this rank has a shard."""

    def keep(self) -> None:
        """The same, and shards on other ranks, and this rank's, keep their state for a checkpoint meanwhile. All
        workers' steps up to their last must be in the parameters."""

    def pieces(self) -> Pieces:
        """What of a run's state this worker has, until the next push: with shards of its own process theirs, too."""

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot; shards do so themselves. Raises CheckpointError."""

    def finish(self) -> list[Counts]:
        """Tell all shards that this worker has no more to push; returns what each of them has done. Blocks until all
        workers have finished."""

    def traffic(self) -> Traffic:
        """So far. Waiting is what a pull lasts."""
