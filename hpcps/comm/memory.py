"""Memory that the ranks of one node see.

Among processes it is anonymous memory of the kernel (memfd_create), which other ranks open through /proc: it has no
name in the file system, so nothing is left behind by ranks that are killed, and it survives a rank that dies.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import secrets
import weakref
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from hpcps import aligned
from hpcps.comm import pages
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
FILES = 1 << 16
"""How many open files are enough for all tables of all ranks of a node"""


class Lent(NamedTuple):
    """Memory of a rank that others of its node may borrow, as long as the rank keeps it."""

    array: Array
    """(size_bytes,) uint8"""
    ticket: Array
    """(TICKET_BYTES,) uint8: what they borrow it by"""


class Reserved(NamedTuple):
    """Memory of a rank that others of its node may borrow, as long as the rank keeps ``memory``; a page of it is taken
    when it is first written to."""

    memory: Array
    """(size_bytes,) uint8"""
    ticket: Array
    """(TICKET_BYTES,) uint8: what they borrow it by"""


class Memory(ABC):
    """What the ranks of ``transport`` share on their nodes. Making one is a collective, and so are its methods but
    :meth:`beside`, :meth:`lend`, :meth:`reserve`, :meth:`take` and :meth:`borrow`.

    ``nodes``: the ranks of each node, nodes in the order of their first ranks; ``node``: this rank's among them;
    ``near``: a transport over the ranks of this node; ``regions``: where all that was allocated lies.
    """

    def __init__(self, transport: Transport) -> None:
        self.nodes = nodes_of(transport)
        self.node = next(i for i, ranks in enumerate(self.nodes) if transport.rank in ranks)
        self.near = transport.group(self.nodes[self.node])
        self.regions: list[Region] = []
        self._kept: list[Array] = []  # regions are addresses: what they tell of must not go away
        self._rows: list[Array] = []  # what :meth:`empty` has made, (ranks of the node, bytes) each

    def pieces(self, size_bytes: int) -> list[Array]:
        """Zeroed memory of ``size_bytes`` for each rank of this node: everybody's, (size_bytes,) uint8 each, by rank of
        ``near``. It stays for as long as this object. Raises CommError on all ranks of the node."""
        return list(self._shares(size_bytes)[:, :size_bytes])

    def empty(self, count: int, dtype: DTypeLike) -> Array:
        """An array of ``count`` elements, the same on all ranks of the node, that the others see; zero at first. Where
        there is too little memory of that kind it is the rank's own. It stays for as long as this object."""
        size_bytes = count * np.dtype(dtype).itemsize
        try:
            shares = self._shares(size_bytes)
        except CommError as error:
            if not error.known_to_all:
                raise
            return aligned.zeros(count, dtype)
        self._rows.append(shares)
        self._tell(size_bytes, [share.ctypes.data for share in shares])
        return shares[self.near.rank, :size_bytes].view(dtype)

    def common(self, count: int, dtype: DTypeLike) -> Array | None:
        """One array of ``count`` elements, zero at first, for all ranks of the node together: what one writes the
        others read. None, on all of them, where there is too little memory. It stays for as long as this object."""
        size_bytes = count * np.dtype(dtype).itemsize
        try:
            whole = self._shares(-(-size_bytes // self.near.size)).reshape(-1)
        except CommError as error:
            if not error.known_to_all:
                raise
            return None
        self._kept.append(whole)
        self._tell(size_bytes, [whole.ctypes.data] * self.near.size)
        return whole[:size_bytes].view(dtype)

    def beside(self, x: Array) -> tuple[Array, int] | None:
        """What the ranks of the node have where this one has ``x``, (n,), part of an array from :meth:`empty`: an array
        (ranks of the node, N) of which n columns from the given one on are meant; None for another ``x``."""
        for rows in self._rows:
            offset = x.ctypes.data - rows[self.near.rank].ctypes.data
            if 0 <= offset <= rows.shape[1] - x.nbytes:
                return rows.view(x.dtype), offset // x.itemsize
        return None

    @property
    @abstractmethod
    def is_shared(self) -> bool:
        """Whether the ranks of this node see each other's memory, and there is some: the first call tries it out."""

    @abstractmethod
    def lend(self, size_bytes: int) -> Lent:
        """Memory of this rank for others to look at. Raises CommError where there is too little of that kind."""

    @abstractmethod
    def reserve(self, size_bytes: int) -> Reserved:
        """Memory of this rank for others to look at, zero at first, more than the machine may have. Raises
        CommError."""

    def take(self, memory: Array, start: int, stop: int) -> None:
        """Take the pages of a part of what was reserved, from a page on, in one go. Raises OSError."""
        pages.take(memory, start, stop)

    @abstractmethod
    def borrow(self, ticket: Array) -> Array:
        """The memory of another rank of this node. Raises CommError."""

    @abstractmethod
    def _whole(self, share_bytes: int) -> Array:
        """Zeroed memory that all ranks of the node see, (ranks * share_bytes,) uint8, each share taken by its rank: on
        a machine of several memories it is then near the rank. Raises CommError on all ranks of the node."""

    def _shares(self, size_bytes: int) -> Array:
        """Memory of at least ``size_bytes`` for each rank of the node, (ranks, bytes)."""
        page_bytes = pages.HUGE_BYTES if 0 < pages.HUGE_BYTES <= 2 * size_bytes else PAGE_BYTES
        padded = max(1, -(-size_bytes // page_bytes)) * page_bytes
        return self._whole(padded).reshape(self.near.size, padded)

    def _tell(self, size_bytes: int, addresses: list[int]) -> None:
        self.regions.append((size_bytes, addresses))


class ProcessMemory(Memory):
    """Memory shared by processes of one node. As each piece of it takes one or two open files, this process may have
    more of them from now on, as far as the system lets it."""

    def __init__(self, transport: Transport) -> None:
        _allow_files(FILES)
        super().__init__(transport)

    @cached_property
    def is_shared(self) -> bool:
        try:
            self.pieces(1)
        except CommError as error:
            if not error.known_to_all:
                raise
            return False
        return True

    def _whole(self, share_bytes: int) -> Array:
        return _map_together(self.near, share_bytes)

    def lend(self, size_bytes: int) -> Lent:
        name = f"hpcps-{secrets.token_hex(8)}"
        file = _create(name, size_bytes)
        try:
            array = _open(f"/proc/self/fd/{file}", name, size_bytes, (0, size_bytes))
        except CommError:
            os.close(file)
            raise
        weakref.finalize(array, os.close, file)
        return Lent(array, _ticket(os.getpid(), file, size_bytes, name))

    def reserve(self, size_bytes: int) -> Reserved:
        name = f"hpcps-{secrets.token_hex(8)}"
        file = _create(name, size_bytes)
        try:
            memory = pages.map_shared(file, size_bytes)
        except (OSError, ValueError) as error:
            os.close(file)
            raise CommError(f"cannot reserve {size_bytes} bytes of shared memory: {error}") from error
        weakref.finalize(memory, os.close, file)
        return Reserved(memory, _ticket(os.getpid(), file, size_bytes, name))

    def take(self, memory: Array, start: int, stop: int) -> None:
        pages.make_huge(memory, start, stop)
        super().take(memory, start, stop)

    def borrow(self, ticket: Array) -> Array:
        process, file, size_bytes, name = ticket.tobytes().decode().split()
        return _open(f"/proc/{int(process)}/fd/{int(file)}", name, int(size_bytes))


class ThreadMemory(Memory):
    """Memory of threads of one process, which see all of it.

    They hand each other what they make together in ``shared``, by address. What one lends stays there as long as any
    of them: others may still look at it when the lender has finished.
    """

    is_shared = True
    _reserved: ClassVar[weakref.WeakValueDictionary[int, Array]] = weakref.WeakValueDictionary()
    """What any threads have reserved, by address: it is there as long as somebody holds it"""

    def __init__(self, transport: Transport, shared: dict[int, Array]) -> None:
        super().__init__(transport)
        self.regions.append((ALL_MEMORY_BYTES, [0] * self.near.size))
        self._shared = shared

    def _whole(self, share_bytes: int) -> Array:
        meeting, start = Meeting(self.near), self.near.rank * share_bytes

        def make() -> Array:
            made = aligned.empty(share_bytes * self.near.size, np.uint8)
            self._shared[made.ctypes.data] = made
            return np.array([made.ctypes.data])

        address = int(meeting.once(make)[0])
        whole = self._shared[address]
        whole[start : start + share_bytes] = 0
        meeting.gather(np.empty(0, np.uint8))
        if self.near.rank == 0:
            del self._shared[address]
        return whole

    def _tell(self, size_bytes: int, addresses: list[int]) -> None:
        """It lies in the one region that there is."""

    def lend(self, size_bytes: int) -> Lent:
        array = aligned.empty(size_bytes, np.uint8)
        self._shared[array.ctypes.data] = array
        return Lent(array, _ticket(array.ctypes.data, size_bytes))

    def reserve(self, size_bytes: int) -> Reserved:
        try:
            memory = np.frombuffer(mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
        except (OSError, ValueError) as error:
            raise CommError(f"cannot reserve {size_bytes} bytes of memory: {error}") from error
        address = memory.ctypes.data
        self._reserved[address] = memory
        return Reserved(memory, _ticket(address, size_bytes))

    def borrow(self, ticket: Array) -> Array:
        address, size_bytes = map(int, ticket.tobytes().decode().split())
        reserved = self._reserved.get(address)
        if reserved is not None:
            return reserved
        if address not in self._shared:
            raise CommError(f"{size_bytes} bytes of another thread are not there any more")
        return array_at(address, size_bytes)


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


def _map_together(near: Transport, share_bytes: int) -> Array:
    """Zeroed memory that all ranks see, (ranks * share_bytes,) uint8. Rank 0 makes it; each rank takes its share."""
    meeting, size_bytes = Meeting(near), share_bytes * near.size
    made: list[int] = []

    def make() -> Array:
        name = f"hpcps-{secrets.token_hex(8)}"
        made.append(_create(name, size_bytes))
        return np.frombuffer(f"{os.getpid()} {made[0]} {name}".encode(), np.uint8)

    def open_it() -> Array:
        return _open(f"/proc/{process}/fd/{file}", name, size_bytes, (near.rank * share_bytes, share_bytes))

    try:
        process, file, name = meeting.once(make).tobytes().decode().split()
        memory = agree(meeting, open_it)
    finally:
        for number in made:
            os.close(number)
    _check_is_shared(meeting, memory)
    return memory


def _allow_files(count: int) -> None:
    """Let this process have so many files open at once, or as many as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _create(name: str, size_bytes: int) -> int:
    """An open file of so many bytes, none of which is taken."""
    try:
        file = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.truncate(file, size_bytes)
        except OSError:
            os.close(file)
            raise
    except OSError as error:
        raise CommError(f"cannot make {size_bytes} bytes of shared memory: {error.strerror}") from error
    return file


def _open(path: str, name: str, size_bytes: int, taken: tuple[int, int] = (0, 0)) -> Array:
    """Memory of that name, of which this rank takes so many bytes from a place on."""
    try:
        if name not in os.readlink(path):  # of a process of the same number, in another container or on another host
            raise CommError(f"{path} is no memory of this job: ranks that name the same node do not share it")
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            memory, (start, own_bytes) = pages.map_shared(file, size_bytes), taken
            try:
                if own_bytes:
                    pages.make_huge(memory, start, start + own_bytes)
                    _take(file, start, own_bytes)
            except CommError:
                del memory  # which the error would keep
                raise
            return memory
        finally:
            os.close(file)
    except (OSError, ValueError) as error:
        raise CommError(f"{path}: shared memory of another rank cannot be used here: {error}") from error


def _take(file: int, start: int, size_bytes: int) -> None:
    """Take memory for a part of a file now, for to run out of it later would be a bus error."""
    try:
        os.posix_fallocate(file, start, size_bytes)
    except OSError as error:
        raise CommError(f"cannot take {size_bytes} bytes of shared memory: {error.strerror}") from error


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
