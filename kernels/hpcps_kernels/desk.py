"""Where the kernel `meet` finds what it needs: a rank's desk, and the lines by which ranks see each other.

A *line* is memory of a rank that all ranks of the node see: LINE_WORDS int64, zero at first. A *desk* is a rank's own
int64 array; it says where, in this process, the lines, the scratch and the regions of all ranks lie. A *region* is
memory of which every rank has a piece that all see; where everything is seen (the threads of one process) one region
from address 0 stands for all memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SETS = 4
"""Sets of scratch: at most so many rounds are under way at a time."""

# Words of a line. A cache line holds what is read in every round.
READY = 0  # the last round that was begun, times 2**ROUND_BITS, and the lower bits of its signature
PLACES = 1  # SETS words: where the array of a round lies
WORKED = 8  # the last round of which this rank has read and written all that it must
SIGNATURES = 16  # SETS words: what is done to which numbers in a round
LINE_WORDS = 24

ROUND_BITS = 24
OFFSET_BITS = 48  # of a place: below, bytes from the start of its region; above, the region's number
IN_SCRATCH, NOT_SEEN = -1, -2  # places that are in no region

# Words of a desk; behind the head P addresses of lines, P of scratch, then for each region its bytes and P addresses.
RANKS, RANK, SETTLED, SCRATCH_BYTES, SMALL_BYTES, REGIONS, HEAD = 0, 1, 2, 3, 4, 5, 8

# What `meet` returns, beside -1 - r: rank r came with another operation, dtype or count.
WAITING_FOR_SETS, WAITING_FOR_ARRAYS, WAITING_FOR_WORK, FINISHED, UNSEEN = 0, 1, 2, 3, 4

Region = tuple[int, Sequence[int]]
"""Bytes of a piece, and the address of each rank's."""


def make_desk(
    rank: int,
    lines: Sequence[int],
    scratch: Sequence[int],
    scratch_bytes: int,
    small_bytes: int,
    regions: Sequence[Region],
    settled: int = 0,
) -> NDArray[np.int64]:
    """The desk of ``rank``. ``lines``, ``scratch``: addresses by rank; ``scratch_bytes``: of one set, a multiple of 64;
    up to ``small_bytes`` every rank adds up all itself; ``settled``: a round that all ranks have finished."""
    head = [len(lines), rank, settled, scratch_bytes, min(small_bytes, scratch_bytes), len(regions), 0, 0]
    flat = [number for size, addresses in regions for number in (size, *addresses)]
    return np.array([*head, *lines, *scratch, *flat], np.int64)
