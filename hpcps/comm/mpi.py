"""Ranks as MPI processes. The only file of the project that imports mpi4py."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import signal
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from hpcps.comm import launcher
from hpcps.comm.lifeline import Lifeline, alone_after, heartbeats
from hpcps.comm.memory import Memory, ProcessMemory
from hpcps.comm.transport import TIMEOUT_S, Array, Patience, StartAgain, Ticket, Transport, timeout_message
from hpcps.errors import CommError, CommTimeout, ConfigError, HpcpsError, PeerLost

if TYPE_CHECKING:
    from hpcps_kernels.cpu.pulse import Pulse

SPINS = 2000
"""Tests of a request before the first look at the clock: long enough for a message inside a node."""

M_PERTURB = -6
"""Of glibc's ``mallopt``: the byte whose complement new memory is filled with"""

ABORTING_S = 10.0
"""How long a rank waits for the end of a job that it has asked for."""

YIELD_S = 0.001
SLEEP_PART = 0.03
SLEEP_MAX_S = 0.0002
"""On a crowded node a wait of more than ``YIELD_S`` sleeps between tests, for this part of the time that it has lasted:
ranks that have something to do get the core."""


class MpiTicket(Ticket):
    """An MPI request."""

    __slots__ = ("rank", "request")

    def __init__(self, request: Any, rank: int, peer: int, what: str) -> None:
        super().__init__(peer, what)
        self.request = request
        self.rank = rank

    def done(self) -> bool:
        """Raises PeerLost where MPI says that the message cannot be moved."""
        try:
            return bool(self.request.Test())
        except _mpi().Exception as error:
            raise _lost(self.rank, [self], error) from error


class RepeatedTicket(MpiTicket):
    """A persistent MPI request, started by calling it, and freed when nobody has it any more, unless MPI has ended."""

    __slots__ = ("__weakref__", "_start")

    def __init__(self, request: Any, rank: int, peer: int, what: str) -> None:
        super().__init__(request, rank, peer, what)
        self._start = request.Start
        weakref.finalize(self, _free, request)

    def __call__(self) -> Ticket:
        try:
            self._start()
        except _mpi().Exception as error:
            raise _lost(self.rank, [self], error) from error
        return self


class MpiTransport(Transport):
    """The ranks of an MPI communicator. ``lifeline``: if they are to go on when some of them die."""

    def __init__(
        self,
        comm: Any,
        timeout_s: float = TIMEOUT_S,
        members: Sequence[int] = (),
        lifeline: Lifeline | None = None,
    ) -> None:
        self._lifeline = lifeline
        self.comm = comm
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()
        self.timeout_s = timeout_s
        self._members = list(members) or list(range(self.size))  # their numbers among all ranks
        self._is_crowded = False
        self._spins = SPINS

    def isend(self, buffer: Array, to: int, tag: int) -> Ticket:
        try:
            return MpiTicket(self.comm.Isend(buffer, to, tag), self.rank, to, "send to")
        except _mpi().Exception as error:
            raise PeerLost(f"rank {self.rank} could not send to rank {to}: {error}") from error

    def irecv(self, buffer: Array, source: int, tag: int) -> Ticket:
        try:
            return MpiTicket(self.comm.Irecv(buffer, source, tag), self.rank, source, "receive from")
        except _mpi().Exception as error:
            raise PeerLost(f"rank {self.rank} could not receive from rank {source}: {error}") from error

    def repeated_send(self, buffer: Array, to: int, tag: int) -> StartAgain:
        return RepeatedTicket(self.comm.Send_init(buffer, to, tag), self.rank, to, "send to")

    def repeated_receive(self, buffer: Array, source: int, tag: int) -> StartAgain:
        return RepeatedTicket(self.comm.Recv_init(buffer, source, tag), self.rank, source, "receive from")

    def wait(self, *tickets: Ticket) -> None:
        try:
            for ticket in tickets:
                done = ticket.request.Test  # type: ignore[attr-defined]
                for _ in range(self._spins):
                    if done():
                        break
                else:
                    self._wait_yielding([ticket])
        except _mpi().Exception as error:
            raise _lost(self.rank, tickets, error) from error

    def wait_any(self, tickets: Sequence[Ticket]) -> int:
        if len(tickets) == 1:
            self.wait(tickets[0])
            return 0
        for _ in range(self._spins // max(1, len(tickets))):
            for position, ticket in enumerate(tickets):
                if ticket.done():
                    return position
        return self._wait_yielding(tickets)

    def _wait_yielding(self, tickets: Sequence[Ticket]) -> int:
        """Test the tickets in turn, giving the core away in between, until one is done or time is up."""
        patience = Patience()
        while True:
            for position, ticket in enumerate(tickets):
                if ticket.done():
                    return position
            self.check()
            waited_s = patience.waited_s()
            if waited_s > self.timeout_s:
                raise CommTimeout(timeout_message(self.rank, tickets, self.timeout_s, self._members))
            if self._is_crowded and waited_s > YIELD_S:
                time.sleep(min(waited_s * SLEEP_PART, SLEEP_MAX_S))
            else:
                os.sched_yield()

    def crowded(self, is_crowded: bool) -> None:
        self._is_crowded = is_crowded
        self._spins = 1 if is_crowded else SPINS

    def group(self, ranks: Sequence[int]) -> Transport:
        members = self.comm.Get_group().Incl(list(ranks))
        numbers = [self._members[rank] for rank in ranks]
        try:
            comm = self.comm.Create_group(members)
        except _mpi().Exception as error:
            raise PeerLost(f"rank {self.rank} could not make a group of ranks {numbers}: {error}") from error
        if self._lifeline is not None:
            self._lifeline.comms.append(comm)
        group = MpiTransport(comm, self.timeout_s, numbers, self._lifeline)
        group.crowded(self._is_crowded)
        group.in_flight = self.in_flight
        return group

    def check(self) -> None:
        if self._lifeline is not None:
            self._lifeline.check()

    def has_lost(self) -> bool:
        return self._lifeline is not None and self._lifeline.is_cut()

    def survivors(self) -> Transport:
        assert self._lifeline is not None
        comm = self._lifeline.survivors(self.timeout_s)
        return MpiTransport(comm, self.timeout_s, self._left(comm), Lifeline(_mpi(), comm))

    def spare(self, ranks: Sequence[int]) -> bool:
        if self._lifeline is not None:
            self._lifeline.spared = frozenset(ranks)
        return self._lifeline is not None

    def lost(self) -> list[int]:
        return [] if self._lifeline is None else self._lifeline.lost()

    def without_lost(self) -> Transport:
        with alone_after(self.timeout_s):
            try:
                comm = self.comm.Shrink()
            except _mpi().Exception as error:
                raise PeerLost(f"the ranks that are left could not meet: {error}") from error
        left = self._left(comm)
        gone = set(self._members) - set(left)
        assert self._lifeline is not None
        if len(gone) > 1 or not {self._members[rank] for rank in self._lifeline.spared}.issuperset(gone):
            raise PeerLost(f"rank(s) {', '.join(map(str, sorted(gone)))} have died")
        return MpiTransport(comm, self.timeout_s, left, Lifeline(_mpi(), comm))

    def joined_by(self, nodes: Sequence[str], words: Sequence[str] = ()) -> Transport:
        mpi, counts = _mpi(), Counter(nodes)
        places: list[Any] = []
        for node in counts:
            info = mpi.Info.Create()
            info.Set("wdir", os.getcwd())
            if not places:  # these are the job's
                info.Set("map_by", "slot:oversubscribe")  # the slots of the dead are not given back
                info.Set("bind_to", "none")
            if list(counts) != [self.node]:
                info.Set("host", node)
            places.append(info)
        line = ["-m", "hpcps", "join", *words]
        with alone_after(self.timeout_s):
            try:
                between = self.comm.Spawn_multiple(
                    [sys.executable] * len(counts), [line] * len(counts), list(counts.values()), places
                )
                comm = between.Merge(False)
            except mpi.Exception as error:
                raise CommError(f"the launcher cannot start ranks: {error}") from error
        return MpiTransport(comm, self.timeout_s, lifeline=Lifeline(_mpi(), comm))

    def _left(self, comm: Any) -> list[int]:
        """The numbers of the ranks of ``comm``, all of them of this one."""
        left = comm.Get_group()
        return [self._members[rank] for rank in left.Translate_ranks(list(range(left.size)), self.comm.Get_group())]

    @property
    def numbers(self) -> list[int]:
        return self._members

    def make_memory(self) -> Memory:
        return ProcessMemory(self)

    has_native_allreduce = True

    @property
    def takes_device_memory(self) -> bool:  # type: ignore[override]
        return takes_device_memory()

    def native_allreduce(self, x: Array) -> Ticket:
        return MpiTicket(self.comm.Iallreduce(_mpi().IN_PLACE, x), self.rank, self.rank, "finish MPI_Iallreduce on")

    def abort(self, error: BaseException) -> None:
        abort(error.exit_status if isinstance(error, HpcpsError) else 1)

    @property
    def description(self) -> str:
        return f"MPI ({library_name()})"

    @property
    def node(self) -> str:
        return str(_mpi().Get_processor_name())


def world(timeout_s: float = TIMEOUT_S) -> MpiTransport:
    """All ranks of the job, on a communicator of hpcps's own; they can go on without some of them if the library was
    started so."""
    mpi = _mpi()
    try:
        comm = mpi.COMM_WORLD.Dup()
    except mpi.Exception as error:
        raise PeerLost(f"a rank was lost before all had met: {error}") from error
    return MpiTransport(comm, timeout_s, lifeline=Lifeline(_mpi(), comm) if launcher.survives(os.environ) else None)


def joined(timeout_s: float = TIMEOUT_S) -> MpiTransport:
    """The ranks that have started this process to join them, and it: see :meth:`MpiTransport.joined_by`. Raises
    ConfigError in a process that nobody has started so."""
    mpi = _mpi()
    between = mpi.Comm.Get_parent()
    if between == mpi.COMM_NULL:
        raise ConfigError("join: no running job has started this process")
    with alone_after(timeout_s):
        comm = between.Merge(True)
    return MpiTransport(comm, timeout_s, lifeline=Lifeline(_mpi(), comm))


def size() -> int:
    """How many ranks the library sees. No collective: a rank that fails alone may ask."""
    return int(_mpi().COMM_WORLD.Get_size())


def abort(status: int) -> None:
    """End every rank of the job with this exit status. Does not return."""
    sys.stdout.flush()
    sys.stderr.flush()
    mpi = _mpi()
    launcher.tell(os.environ, launcher.ENDING, status)
    end_after(ABORTING_S)  # the launcher may be out of reach
    mpi.COMM_WORLD.Abort(status)


def library_name() -> str:
    """The MPI library and its version, in a few words."""
    return launcher.library_name(str(_mpi().Get_library_version()))


@functools.cache
def takes_device_memory() -> bool:
    """Whether the MPI library says that it takes pointers into a GPU's memory. Open MPI has had this question for long,
    MPICH since 3.4; of another library nothing is known, and it gets none."""
    library = ctypes.CDLL(_mpi().__file__)  # the symbols of the MPI library below are found by it
    ask = getattr(library, "MPIX_Query_cuda_support", None)
    return ask is not None and ask() == 1


def thread_level() -> str:
    """The thread support that MPI granted: single, funneled, serialized or multiple."""
    mpi = _mpi()
    names = {
        mpi.THREAD_SINGLE: "single",
        mpi.THREAD_FUNNELED: "funneled",
        mpi.THREAD_SERIALIZED: "serialized",
        mpi.THREAD_MULTIPLE: "multiple",
    }
    return names[mpi.Query_thread()]


def is_running() -> bool:
    """Whether MPI has been initialised in this process, without loading it."""
    module = sys.modules.get("mpi4py.MPI")
    return module is not None and bool(module.Is_initialized())


def _mpi() -> Any:
    module = sys.modules.get("mpi4py.MPI")
    if module is None:
        import mpi4py

        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
        from mpi4py import MPI

        module = MPI
        _start(module)
    return module


def _start(mpi: Any) -> None:
    """Initialise MPI. Where srun offers PMIx to an MPICH that does not speak it, MPICH would end the process before
    hpcps can say a word; without the offer each rank is alone, and is seen to disagree with its launcher."""
    about = str(mpi.Get_library_version())
    if "MPICH" in about and "pmix" not in about.lower():
        for name in [name for name in os.environ if name.startswith("PMIX_")]:
            del os.environ[name]
    if mpi.Is_initialized():
        return
    pulse = heartbeats(mpi, launcher.heartbeat_s(os.environ))
    # Else one thread of a rank talks at a time: locks inside MPI cost time.
    level = mpi.THREAD_SERIALIZED if pulse is None else mpi.THREAD_MULTIPLE
    is_pmi_of_slurm = "MPICH" in about and "PMI_FD" in os.environ and "SLURM_JOB_ID" in os.environ
    with _ends_after(launcher.beginning_s(os.environ)), _zeroed_memory() if is_pmi_of_slurm else nullcontext():
        mpi.Init_thread(level)  # which Open MPI always grants
    if pulse is not None:
        pulse.start()
        atexit.register(_end, mpi, pulse)


@contextmanager
def _zeroed_memory() -> Iterator[None]:
    """Memory that C code allocates meanwhile is zeros, where the C library can do that. MPICH's ranks tell each other
    addresses in buffers of 4 KiB, and leave the rest of those as it was; Slurm's pmi2 loses what does not compress."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        yield
        return
    set_option(M_PERTURB, 0xFF)
    try:
        yield
    finally:
        set_option(M_PERTURB, 0)


def _end(mpi: Any, pulse: Pulse) -> None:
    """End MPI as soon as nothing sends heartbeats any more: a rank of which nothing is heard counts as dead, and the
    interpreter's own end may take longer."""
    pulse.end()
    with suppress(mpi.Exception):  # another rank dies in it
        mpi.Finalize()


def end_after(seconds: float) -> Any:
    """End this process after a while, by the kernel's clock. Returns what SIGALRM did before. Where Python cannot set
    signals, on another thread than the first, nothing is done."""
    if threading.current_thread() is not threading.main_thread():
        return signal.SIG_DFL
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    return before


@contextmanager
def _ends_after(seconds: float) -> Iterator[None]:
    """End this process where what is inside lasts longer, if ``seconds`` > 0: by the kernel's clock, for Python's
    threads do not run meanwhile. Of a job in which a rank dies before all have met, and which nobody ends."""
    if seconds <= 0:
        yield
        return
    before = end_after(seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _free(request: Any) -> None:
    mpi = _mpi()
    if not mpi.Is_finalized():
        try:
            request.Free()
        except mpi.Exception:  # of a communicator that was revoked, for a rank has died
            return


def _lost(rank: int, tickets: Sequence[Ticket], error: Exception) -> PeerLost:
    peers = ", ".join(str(ticket.peer) for ticket in tickets)
    return PeerLost(f"rank {rank} could not {tickets[0].what} rank {peers}: {error}")
