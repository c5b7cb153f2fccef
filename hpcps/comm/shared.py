"""All-reduce through memory that all ranks of a node see: no message, no copy but the one into it.

Every rank has a slot for its array and a flag, a counter. It deposits the array, raises its flag, waits for the other
flags, and adds up all slots itself. Rounds use two sets of slots in turn: who raises its flag for round k has read all
of round k - 1, so when all flags have reached k, nobody reads the set of round k - 1 any more, and round k + 1 may
overwrite it.

The memory is POSIX shared memory whose name is removed as soon as all ranks have it open: it survives a rank that
dies, and nothing is left behind by ranks that are killed.
"""

from __future__ import annotations

import mmap
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from hpcps.comm.meeting import Meeting
from hpcps.comm.transport import Array, Transport
from hpcps.errors import CommError, CommTimeout
from hpcps.together import agree

FOLDER = Path("/dev/shm")
FLAG_NUMBERS = 8  # int64 numbers of a flag: one cache line
LOOKS = 20000  # at the flags before the first look at the clock: about a millisecond
Deposit = Callable[[Array, Array, Array, int, int], None]
Collect = Callable[[Array, Array, Array, int, int], bool]


def memory_bytes(ranks: int, count: int, dtype: DTypeLike) -> int:
    """How much memory a :class:`SharedAllreduce` takes on the node."""
    return ranks * (FLAG_NUMBERS * 8 + 2 * count * np.dtype(dtype).itemsize)


class SharedAllreduce:
    """All-reduces of arrays of ``count`` elements of ``dtype`` among ranks of one node. Making it is a collective.

    Cost of one: n elements written and P n read by each rank, in no steps but one wait. Added in rank order: all ranks
    get the same bits. ``deposit`` and ``collect`` are the kernels of these names; ``crowded``: there are more ranks
    than cores, so that a wait gives the core away at once. Raises CommError, on all ranks, if the ranks do not see the
    same memory or there is too little of it.
    """

    name = "shared memory"

    def __init__(
        self,
        transport: Transport,
        count: int,
        dtype: DTypeLike,
        deposit: Deposit,
        collect: Collect,
        crowded: bool = False,
    ) -> None:
        ranks = transport.size
        self._transport = transport
        self._deposit = deposit
        self._collect = collect
        self._looks = 1 if crowded else LOOKS
        self._round = 0
        memory = _map_together(transport, memory_bytes(ranks, count, dtype))
        flags_bytes = ranks * FLAG_NUMBERS * 8
        self._flags = memory[:flags_bytes].view(np.int64).reshape(ranks, FLAG_NUMBERS)
        self._slots = memory[flags_bytes:].view(dtype).reshape(2, ranks, count)

    def start(self, x: Array) -> SharedPending:
        """Begin the sum of ``x``, (count,), which may not be touched before the wait and then holds the sum."""
        self._round += 1
        slots = self._slots[self._round % 2]
        self._deposit(slots[self._transport.rank], self._flags, x, self._transport.rank, self._round)
        return SharedPending(self, x, slots, self._round)

    def finish(self, x: Array, slots: Array, number: int) -> None:
        """Collect round ``number``. Raises CommTimeout naming the ranks whose arrays did not come."""
        if self._collect(x, slots, self._flags, number, self._looks):
            return
        deadline = time.monotonic() + self._transport.timeout_s
        while not self._collect(x, slots, self._flags, number, 1):
            os.sched_yield()
            if time.monotonic() > deadline:
                raise CommTimeout(self._late(number))

    def _late(self, number: int) -> str:
        late = ", ".join(str(rank) for rank in np.flatnonzero(self._flags[:, 0] < number))
        waited = f"rank {self._transport.rank} waited {self._transport.timeout_s:g} s for the array"
        return f"{waited} of rank(s) {late}; a longer wait is run.timeout_s"


class SharedPending:
    """A sum to which this rank has contributed; :meth:`wait` collects it."""

    def __init__(self, allreduce: SharedAllreduce, x: Array, slots: Array, number: int) -> None:
        self._allreduce = allreduce
        self._x = x
        self._slots = slots
        self._number = number

    def wait(self) -> None:
        """Block until every rank has contributed, and write the sum."""
        self._allreduce.finish(self._x, self._slots, self._number)


def _map_together(transport: Transport, size_bytes: int) -> Array:
    """Zeroed memory that all ranks see, (size_bytes,) uint8. Rank 0 names it; no name is left when this returns."""
    meeting = Meeting(transport)
    name = meeting.once(lambda: np.frombuffer(_create(size_bytes), np.uint8)).tobytes().decode()
    try:
        memory = agree(meeting, lambda: _open(Path(name), size_bytes))
        _check_is_shared(meeting, memory)
    finally:
        if transport.rank == 0:
            Path(name).unlink(missing_ok=True)
    return memory


def _create(size_bytes: int) -> bytes:
    """Make the file and take its memory now, for to run out of it later would be a bus error. Returns its path."""
    path = FOLDER / f"hpcps-{secrets.token_hex(8)}"
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            os.posix_fallocate(file, 0, size_bytes)
        finally:
            os.close(file)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise CommError(f"{FOLDER}: cannot take {size_bytes} bytes of shared memory: {error.strerror}") from error
    return str(path).encode()


def _open(path: Path, size_bytes: int) -> Array:
    try:
        file = os.open(path, os.O_RDWR)
        try:
            return np.frombuffer(mmap.mmap(file, size_bytes), np.uint8)
        finally:
            os.close(file)
    except (OSError, ValueError) as error:
        raise CommError(f"{path}: shared memory of another rank cannot be used here: {error}") from error


def _check_is_shared(meeting: Meeting, memory: Array) -> None:
    """Every rank writes its number and must find all numbers; then the memory is zero again."""
    marks = memory[: meeting.size * FLAG_NUMBERS * 8].view(np.int64).reshape(meeting.size, FLAG_NUMBERS)
    marks[meeting.rank, 0] = meeting.rank + 1
    meeting.gather(np.empty(0, np.uint8))
    found = marks[:, 0].tolist() == list(range(1, meeting.size + 1))
    agree(meeting, lambda: None if found else _not_shared())
    marks[meeting.rank, 0] = 0
    meeting.gather(np.empty(0, np.uint8))


def _not_shared() -> None:
    raise CommError(f"{FOLDER}: the ranks do not see the same memory")
