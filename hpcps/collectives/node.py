"""Collectives inside a node: the ranks add up each other's arrays where they lie (kernel ``meet``)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from hpcps_kernels.desk import (
    FINISHED,
    LINE_WORDS,
    READY,
    ROUND_BITS,
    SETS,
    SETTLED,
    UNSEEN,
    WAITING_FOR_ARRAYS,
    WAITING_FOR_SETS,
    WAITING_FOR_WORK,
    WORKED,
    make_desk,
)
from hpcps_kernels.spec import MEET_OPERATIONS as OPERATIONS

from hpcps import aligned
from hpcps.comm.memory import Memory
from hpcps.comm.topology import chunk_bounds
from hpcps.comm.transport import Array, Patience
from hpcps.errors import CommError, CommTimeout

LOOKS = 20000
"""At the other ranks' words before the first look at the clock: some ten microseconds. Ten times as many made no
difference to training that could be told from noise."""
SCRATCH_BYTES = 1 << 18
"""Of a set. Arrays that not all ranks see go through it, larger ones in segments, which stay in the cache."""
SMALL_BYTES = 2048
"""Up to here every rank adds up all arrays itself: to wait once more costs more than to add twice."""
WORK_BYTES = 1 << 17
"""2048 numbers for each sum that is kept at a time: a tree over 128 pieces keeps 8."""

SUM, SCATTER, GATHER = range(3)  # the kernel's operations, by their positions in OPERATIONS
NOT_BEGUN = -1  # what is no state of the kernel's
NO_BOUNDS = np.empty(0, np.int64)
NO_PROGRAM = np.empty((0, 3), np.int64)


class Channel:
    """Rounds one after another among the ranks of a node. Making one is a collective of them.

    All ranks start the same rounds in the same order. ``is_crowded``: there are more ranks than cores, so that a wait
    gives the core away at once. Raises CommError, on all ranks, where they cannot share memory.
    """

    def __init__(self, memory: Memory, kernels: Any, is_crowded: bool, is_staging: bool = False) -> None:
        line_bytes = LINE_WORDS * 8
        pieces = memory.pieces(line_bytes + SETS * SCRATCH_BYTES)
        self._lines = [piece[:line_bytes].view(np.int64) for piece in pieces]
        self._scratch = [piece[line_bytes:] for piece in pieces]
        self._memory = memory
        self._meet, self._meet_sum = kernels.meet.unchecked, kernels.meet_sum.unchecked
        self._transport = memory.near
        self._looks = 1 if is_crowded else LOOKS
        self._work = aligned.empty(WORK_BYTES, np.uint8)
        self._desk = self._make_desk(settled=0)
        self._regions = len(memory.regions)
        self._number = 0
        self._under_way: deque[Round] = deque()
        self._staging = None if is_staging else Channel(memory, kernels, is_crowded, is_staging=True)

    def prepare(
        self,
        x: Array,
        count: int,
        operation: int = SUM,
        bounds: Array = NO_BOUNDS,
        program: Array = NO_PROGRAM,
        format: int = 0,
    ) -> Round:
        """A round, as the kernel ``meet`` says, to be started, again and again, each time after it has ended; ``x``,
        one-dimensional, may not be touched in between."""
        return Round(self, x, count, operation, bounds, program, format)

    def begin(self, round: Round) -> None:
        """Give the round its number, and tell the others where its array is."""
        self._number += 1
        round.number, round.state = self._number, WAITING_FOR_SETS
        if not self._under_way or self._under_way[-1].state != WAITING_FOR_SETS:
            self._look(round, 0)
        self._under_way.append(round)

    def run(self, round: Round) -> None:
        """A round from begin to end, mostly by one call of the kernel."""
        if self._under_way:
            self.begin(round)
        else:
            self._number += 1
            round.number, round.state = self._number, WAITING_FOR_SETS
            self._under_way.append(round)
            self._look(round, self._looks)
        if round.state < FINISHED:
            self.wait(round)

    def sum(self, x: Array, format: int = 0) -> None:
        """A round from begin to end, with the least to do in between: all of ``x`` becomes the sum."""
        if self._under_way or len(self._memory.regions) != self._regions:
            self.prepare(x, len(x), format=format).start().wait()
            return
        self._number = number = self._number + 1
        state = self._meet_sum(x, self._work, self._desk, format, number, self._looks)
        if state != FINISHED:
            round = Round(self, x, len(x), SUM, NO_BOUNDS, NO_PROGRAM, format)
            round.number = number
            self._under_way.append(round)
            self._reach(round, state)
            round.wait()

    def advance(self, last: Round, looks: int) -> bool:
        """Go on with all rounds up to ``last``; whether it is finished."""
        while self._under_way and last.state < FINISHED:
            first = self._under_way[0]
            self._look(first, looks)
            if first.state < FINISHED:
                return False
        return last.state >= FINISHED

    def wait(self, last: Round) -> None:
        """Go on until ``last`` is finished. Raises CommTimeout naming the ranks that did not come."""
        self._look(self._under_way[0], self._looks)
        if last.state >= FINISHED:  # mostly: nothing else is under way, and the others come soon
            return
        patience = Patience()
        while not self.advance(last, 1):
            os.sched_yield()
            self._transport.check()
            if patience.waited_s() > self._transport.timeout_s:
                raise CommTimeout(self._late(self._under_way[0]))

    def _look(self, round: Round, looks: int) -> None:
        if len(self._memory.regions) != self._regions:
            self._desk, self._regions = self._make_desk(int(self._desk[SETTLED])), len(self._memory.regions)
        if round.desk is not self._desk:
            r, round.desk = round, self._desk
            arrays = r.x, self._work, r.bounds, r.program, self._desk
            round.meet = partial(self._meet, *arrays, r.operation, r.format, r.count)
        self._reach(round, round.meet(round.number, round.state, looks))

    def _reach(self, round: Round, state: int) -> None:
        if state < 0:
            both = f"rank {self._name(self._transport.rank)} and rank {self._name(-1 - state)}"
            here = f"{OPERATIONS[round.operation]} of {round.count} elements of {round.x.dtype}"
            raise CommError(f"{both} called different collectives: here {here}; all ranks must call the same")
        round.state = state
        if state == UNSEEN:
            self._stage(round)
        if state >= FINISHED and self._under_way and self._under_way[0] is round:
            self._under_way.popleft()

    def _stage(self, round: Round) -> None:
        """The same, segment by segment, through scratch. Blocks."""
        assert self._staging is not None
        if len(round.program):
            raise CommError("arrays in pieces must lie in memory that all ranks of the node see (transport.empty)")
        given = round.bounds if len(round.bounds) else np.array(chunk_bounds(round.count, self._transport.size))
        step = SCRATCH_BYTES // round.x.itemsize
        for start in range(0, round.count, step):
            segment = round.x[start : min(start + step, round.count)]
            if round.operation == SUM:
                self._staging.sum(segment, round.format)
            else:
                bounds = np.clip(given - start, 0, len(segment))
                self._staging.prepare(segment, len(segment), round.operation, bounds).start().wait()

    def _make_desk(self, settled: int) -> Array:
        lines, scratch = ([int(piece.ctypes.data) for piece in pieces] for pieces in (self._lines, self._scratch))
        regions = self._memory.regions
        return make_desk(self._transport.rank, lines, scratch, SCRATCH_BYTES, SMALL_BYTES, regions, settled)

    def _late(self, round: Round) -> str:
        words = {
            WAITING_FOR_SETS: (WORKED, round.number - SETS, "to finish earlier collectives"),
            WAITING_FOR_ARRAYS: (READY, round.number << ROUND_BITS, "to bring their arrays"),
            WAITING_FOR_WORK: (WORKED, round.number, "to add up their share"),
        }
        word, value, what = words[round.state]
        late = ", ".join(self._name(rank) for rank, line in enumerate(self._lines) if line[word] < value)
        waited = f"rank {self._name(self._transport.rank)} waited {self._transport.timeout_s:g} s for rank(s) {late}"
        return f"{waited} {what}; a longer wait is run.timeout_s"

    def _name(self, rank: int) -> str:
        """A rank of this node, as the whole transport numbers it."""
        return str(self._memory.nodes[self._memory.node][rank])


class Round:
    """A collective of a node; ``state`` is the kernel's, or NOT_BEGUN."""

    __slots__ = ("bounds", "channel", "count", "desk", "format", "meet", "number", "operation", "program", "state", "x")

    meet: Callable[[int, int, int], int]
    """The kernel, bound to the round's arrays and those of the channel, of which it has seen this ``desk``"""

    def __init__(
        self,
        channel: Channel,
        x: Array,
        count: int,
        operation: int,
        bounds: Array,
        program: Array,
        format: int,
    ) -> None:
        self.channel = channel
        self.x = x
        self.count = count
        self.operation = operation
        self.bounds = bounds
        self.program = program
        self.format = format
        self.number = 0
        self.state = FINISHED
        self.desk: Array | None = None

    def start(self) -> Round:
        """Begin it, after it has ended if it was under way."""
        if self.state < FINISHED:
            raise CommError("a collective was started again before it had ended")
        self.channel.begin(self)
        return self

    def later(self) -> Round:
        """Begin it when it is first asked for: less to do, where nothing could go on before that."""
        if self.state < FINISHED:
            raise CommError("a collective was started again before it had ended")
        self.state = NOT_BEGUN
        return self

    def done(self) -> bool:
        """Go on as far as that goes without waiting; whether it is finished."""
        if self.state == NOT_BEGUN:
            self.channel.begin(self)
        return self.state >= FINISHED or self.channel.advance(self, 1)

    def wait(self) -> None:
        """Block until it is finished. Raises CommTimeout, PeerLost, or CommError where ranks did different things."""
        if self.state == NOT_BEGUN:
            self.channel.run(self)
        elif self.state < FINISHED:
            self.channel.wait(self)
