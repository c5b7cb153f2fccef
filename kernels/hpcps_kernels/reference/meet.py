"""Sums over memory that several ranks see at once.

Every rank has a slot and a flag, a counter on a cache line of its own. A rank deposits an array in its slot and
raises its flag to the number of the round; who finds all flags raised may collect the sum of the slots. The order in
which memory is written and read is part of the contract: release when a flag is raised, acquire when it is read.
"""

from __future__ import annotations

import numpy as np

from hpcps_kernels.interface import Array


def deposit(slot: Array, flags: Array, x: Array, rank: int, round: int) -> None:
    """Copy ``x`` (n,) into ``slot`` (n,), then raise this rank's flag: ``flags[rank, 0] = round``.

    ``flags``: (P, 8) int64, a cache line a rank. Raises IndexError if there is no such rank.
    """
    slot[:] = x
    if not 0 <= rank < len(flags):
        raise IndexError("deposit: the rank is outside 0..P-1")
    flags[rank, 0] = round


def collect(out: Array, slots: Array, flags: Array, round: int, spins: int) -> bool:
    """Look at the flags up to ``spins`` times; once all have reached ``round``, write the sum of ``slots`` (P, n),
    added from the first to the last, to ``out`` (n,) and return True. Return False, ``out`` untouched, if they have
    not. P >= 1."""
    for _ in range(spins):
        if (flags[:, 0] >= round).all():
            out[:] = slots[0]
            for slot in slots[1:]:
                np.add(out, slot, out)
            return True
    return False
