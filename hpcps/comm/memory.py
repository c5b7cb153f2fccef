"""Memory that the ranks of one node see.

Among processes it is anonymous memory of the kernel (memfd_create), which other ranks open through /proc: it has no
name in the file system, so nothing is left behind by ranks that are killed, and it survives a rank that dies.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import secrets
import weakref
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from hpcps import aligned
from hpcps.comm.meeting import Meeting
from hpcps.errors import CommError
from hpcps.together import agree

if TYPE_CHECKING:
    from hpcps.comm.transport import Transport

Array = np.ndarray[Any, Any]
Region = tuple[int, list[int]]
"""Bytes of a piece, and the address, in this process, of each rank's."""

PAGE_BYTES = mmap.PAGESIZE
ALL_MEMORY_BYTES = 2**62
TICKET_BYTES = 96


class Lent(NamedTuple):
    """Memory of a rank that others of its node may borrow, as long as the rank keeps it."""

    array: Array
    """(size_bytes,) uint8"""
    ticket: Array
    """(TICKET_BYTES,) uint8: what they borrow it by"""


class Memory(ABC):
    """What the ranks of ``transport`` share on their nodes. Making one is a collective, and so are its methods but
    :meth:`lend` and :meth:`borrow`.

    ``nodes``: the ranks of each node, nodes in the order of their first ranks; ``node``: this rank's among them;
    ``near``: a transport over the ranks of this node; ``regions``: where all that was allocated lies.
    """

    def __init__(self, transport: Transport) -> None:
        self.nodes = nodes_of(transport)
        self.node = next(i for i, ranks in enumerate(self.nodes) if transport.rank in ranks)
        self.near = transport.group(self.nodes[self.node])
        self.regions: list[Region] = []

    @abstractmethod
    def pieces(self, size_bytes: int) -> list[Array]:
        """Zeroed memory of ``size_bytes`` for each rank of this node: everybody's, (size_bytes,) uint8 each, by rank of
        ``near``. It stays for as long as this object. Raises CommError on all ranks of the node."""

    @abstractmethod
    def empty(self, count: int, dtype: DTypeLike) -> Array:
        """An array of ``count`` elements, the same on all ranks of the node, that the others see; zero at first. Where
        there is too little memory of that kind it is the rank's own. It stays for as long as this object."""

    @abstractmethod
    def common(self, count: int, dtype: DTypeLike) -> Array | None:
        """One array of ``count`` elements, zero at first, for all ranks of the node together: what one writes the
        others read. None, on all of them, where there is too little memory. It stays for as long as this object."""

    @property
    @abstractmethod
    def is_shared(self) -> bool:
        """Whether the ranks of this node see each other's memory, and there is some: the first call tries it out."""

    @abstractmethod
    def lend(self, size_bytes: int) -> Lent:
        """Memory of this rank for others to look at. Raises CommError where there is too little of that kind."""

    @abstractmethod
    def borrow(self, ticket: Array) -> Array:
        """The memory of another rank of this node. Raises CommError."""


class ProcessMemory(Memory):
    """Memory shared by processes of one node."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self._kept: list[list[Array]] = []  # regions are addresses: what they tell of must not go away

    def pieces(self, size_bytes: int) -> list[Array]:
        padded = max(1, -(-size_bytes // PAGE_BYTES)) * PAGE_BYTES
        whole = _map_together(self.near, padded * self.near.size)
        return [whole[r * padded : r * padded + size_bytes] for r in range(self.near.size)]

    def empty(self, count: int, dtype: DTypeLike) -> Array:
        size_bytes = count * np.dtype(dtype).itemsize
        try:
            pieces = self.pieces(size_bytes)
        except CommError as error:
            if not error.known_to_all:
                raise
            return aligned.zeros(count, dtype)
        self._kept.append(pieces)
        self.regions.append((size_bytes, [piece.ctypes.data for piece in pieces]))
        return pieces[self.near.rank].view(dtype)

    def common(self, count: int, dtype: DTypeLike) -> Array | None:
        size_bytes = count * np.dtype(dtype).itemsize
        try:
            share = max(1, -(-size_bytes // (PAGE_BYTES * self.near.size))) * PAGE_BYTES
            whole = _map_together(self.near, share * self.near.size)
        except CommError as error:
            if not error.known_to_all:
                raise
            return None
        self._kept.append([whole])
        self.regions.append((size_bytes, [whole.ctypes.data] * self.near.size))
        return whole[:size_bytes].view(dtype)

    @cached_property
    def is_shared(self) -> bool:
        try:
            self.pieces(1)
        except CommError as error:
            if not error.known_to_all:
                raise
            return False
        return True

    def lend(self, size_bytes: int) -> Lent:
        name = f"hpcps-{secrets.token_hex(8)}"
        file = _create(name, size_bytes)
        array = _open(f"/proc/self/fd/{file}", name, size_bytes)
        weakref.finalize(array, os.close, file)
        return Lent(array, _ticket(os.getpid(), file, size_bytes, name))

    def borrow(self, ticket: Array) -> Array:
        process, file, size_bytes, name = ticket.tobytes().decode().split()
        return _open(f"/proc/{int(process)}/fd/{int(file)}", name, int(size_bytes))


class ThreadMemory(Memory):
    """Memory of threads of one process, which see all of it.

    Pieces are put into ``kept``, a list that lives as long as any of the threads: one may still look at what another,
    which has finished, had shared.
    """

    def __init__(self, transport: Transport, kept: list[Array]) -> None:
        super().__init__(transport)
        self.regions.append((ALL_MEMORY_BYTES, [0] * self.near.size))
        self._kept = kept

    def pieces(self, size_bytes: int) -> list[Array]:
        mine = aligned.zeros(size_bytes, np.uint8)
        self._kept.append(mine)
        addresses = Meeting(self.near).gather(np.array([mine.ctypes.data]))
        return [array_at(int(address), size_bytes) for address in addresses]

    def empty(self, count: int, dtype: DTypeLike) -> Array:
        return aligned.zeros(count, dtype)

    def common(self, count: int, dtype: DTypeLike) -> Array | None:
        return self.pieces(count * np.dtype(dtype).itemsize)[0].view(dtype)

    is_shared = True

    def lend(self, size_bytes: int) -> Lent:
        array = aligned.empty(size_bytes, np.uint8)
        self._kept.append(array)
        return Lent(array, _ticket(array.ctypes.data, size_bytes))

    def borrow(self, ticket: Array) -> Array:
        address, size_bytes = ticket.tobytes().decode().split()
        return array_at(int(address), int(size_bytes))


def _ticket(*words: object) -> Array:
    text = " ".join(map(str, words)).encode()
    return np.frombuffer(text.ljust(TICKET_BYTES), np.uint8)


def node_names(transport: Transport) -> list[str]:
    """The name of each rank's node. A collective."""
    told = Meeting(transport).gather(np.frombuffer((transport.node + "\n").encode(), np.uint8))
    return told.tobytes().decode().splitlines()


def nodes_of(transport: Transport) -> list[list[int]]:
    """The ranks of each node. A collective."""
    by_name: dict[str, list[int]] = {}
    for rank, name in enumerate(node_names(transport)):
        by_name.setdefault(name, []).append(rank)
    return list(by_name.values())


def _map_together(near: Transport, size_bytes: int) -> Array:
    """Zeroed memory that all ranks see, (size_bytes,) uint8. Rank 0 makes it."""
    meeting = Meeting(near)
    made: list[int] = []

    def make() -> Array:
        name = f"hpcps-{secrets.token_hex(8)}"
        made.append(_create(name, size_bytes))
        return np.frombuffer(f"{os.getpid()} {made[0]} {name}".encode(), np.uint8)

    try:
        process, file, name = meeting.once(make).tobytes().decode().split()
        memory = agree(meeting, lambda: _open(f"/proc/{process}/fd/{file}", name, size_bytes))
    finally:
        for number in made:
            os.close(number)
    _check_is_shared(meeting, memory)
    return memory


def _create(name: str, size_bytes: int) -> int:
    """Make the file and take its memory now, for to run out of it later would be a bus error."""
    try:
        file = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(file, 0, size_bytes)
        except OSError:
            os.close(file)
            raise
    except OSError as error:
        raise CommError(f"cannot take {size_bytes} bytes of shared memory: {error.strerror}") from error
    return file


def _open(path: str, name: str, size_bytes: int) -> Array:
    try:
        if name not in os.readlink(path):  # of a process of the same number, in another container or on another host
            raise CommError(f"{path} is no memory of this job: ranks that name the same node do not share it")
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return np.frombuffer(mmap.mmap(file, size_bytes), np.uint8)
        finally:
            os.close(file)
    except (OSError, ValueError) as error:
        raise CommError(f"{path}: shared memory of another rank cannot be used here: {error}") from error


def _check_is_shared(meeting: Meeting, memory: Array) -> None:
    """Every rank writes its number and must find all numbers; then the memory is zero again."""
    marks = memory.reshape(meeting.size, -1)
    marks[meeting.rank, 0] = meeting.rank % 255 + 1
    meeting.gather(np.empty(0, np.uint8))
    found = marks[:, 0].tolist() == [rank % 255 + 1 for rank in range(meeting.size)]
    agree(meeting, lambda: None if found else _not_shared())
    marks[meeting.rank, 0] = 0
    meeting.gather(np.empty(0, np.uint8))


def _not_shared() -> None:
    raise CommError("the ranks of this node do not see the same memory")


def array_at(address: int, size_bytes: int) -> Array:
    """(size_bytes,) uint8 at an address of this process; whoever asks sees to it that the memory stays."""
    array: Array = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))
    return array
