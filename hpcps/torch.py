"""PyTorch's DistributedDataParallel on CPUs, its gradients averaged by hpcps. The only file that imports torch.

::

    model = DistributedDataParallel(net)
    hpcps.torch.use(model)

The ranks may be torchrun's, with no MPI at all: :class:`TorchTransport` takes the connections that gloo has made.
"""

# No `from __future__ import annotations`: DistributedDataParallel checks the hook's annotations, and wants no strings.

import contextlib
import math
import os
import re
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

import numpy as np

from hpcps.collectives import Pending, allreduce, start_allreduce
from hpcps.comm.memory import Memory, ProcessMemory
from hpcps.comm.transport import Array, Ticket, Transport
from hpcps.errors import CommError, CommTimeout, ConfigError, ModelError, PeerLost

try:
    import torch
    import torch.distributed as dist
    from torch.distributed.constants import default_pg_timeout
    from torch.nn.parallel import DistributedDataParallel
except ImportError as error:
    raise ImportError(f"hpcps.torch needs PyTorch ({error}); pip install 'hpcps[torch]'") from error

TIMEOUT_S = default_pg_timeout.total_seconds()
"""As long as torch's own collectives wait: 30 minutes, in which rank 0 may save or evaluate."""

SUMMED = (torch.float32, torch.float64)
SUMMED_WIDER = (torch.bfloat16, torch.float16)

CONTEXTS = 1 << 15
TAGS = 1 << 16  # of a context; gloo's tags have 31 bits
SETTING_UP = CONTEXTS - 1  # the context in which a transport's own one is agreed on
CONTEXT_TAG = TAGS - 1
NO_TAG = TAGS - 2  # nothing is ever sent with it
CONTEXT_KEY = "hpcps/contexts"
CHECK_S = 0.5
NEVER = timedelta(days=3650)


def use(model: DistributedDataParallel, transport: Transport | None = None, timeout_s: float = TIMEOUT_S) -> Transport:
    """Let hpcps average the gradients of ``model`` from now on; returns the transport. A collective; blocks.

    To be called once, before the first backward pass. ``transport``: the ranks of the model's process group, in its
    order; by default a :class:`TorchTransport` over that group, every wait of which ends after ``timeout_s``. Compiles
    what the sums need, so that no step does. Raises ModelError for a parameter that is not in a CPU's memory or has
    another dtype than float32, float64, bfloat16 or float16, ConfigError for a transport of other ranks or a process
    group without gloo; later, ``backward`` raises CommTimeout or PeerLost, naming the rank that is missing.
    """
    if not isinstance(model, DistributedDataParallel):
        raise TypeError(f"hpcps.torch.use takes a DistributedDataParallel model, not a {type(model).__name__}")
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name, parameter in trained:
        _check(name, parameter)
    if transport is None:
        transport = TorchTransport(model.process_group, timeout_s)
    ranks = (dist.get_rank(model.process_group), dist.get_world_size(model.process_group))
    if (transport.rank, transport.size) != ranks:
        theirs = f"rank {ranks[0]} of {ranks[1]} of the model's process group"
        message = f"rank {transport.rank} of {transport.size} of the transport is {theirs}"
        raise ConfigError(f"{message}; give a transport over the same ranks, or none")
    for dtype in sorted({_summed_as(parameter.dtype) for _, parameter in trained}, key=str):
        allreduce(torch.zeros(1, dtype=dtype).numpy(), transport)
    model.register_comm_hook(Averages(transport), average)
    return transport


def average(averages: "Averages", bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """The communication hook: start to average a bucket's gradients over the ranks; with the last bucket, finish all.

    The gradients are divided by the number of ranks and added, as PyTorch does; bfloat16 and float16 are added as
    float32 and rounded once. All ranks get the same bits. Blocks with the last bucket of a step alone. Raises
    ModelError for a sparse gradient, CommTimeout, PeerLost.
    """
    future = averages.start(bucket.index(), bucket.buffer())
    if bucket.is_last():
        averages.finish()
    return future


class Averages:
    """The hook's state: the sums of a step that are under way, and memory for them that the ranks of a node share, as
    much as the gradients take, twice once the model has rearranged its buckets (after the first step)."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._arrays: dict[int, torch.Tensor] = {}
        self._under_way: list[tuple[Pending, torch.Tensor, torch.Tensor, torch.futures.Future[torch.Tensor]]] = []

    def start(self, index: int, gradient: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
        """Begin the average of bucket ``index``; the future has it once :meth:`finish` has returned."""
        _check("a gradient", gradient)
        x = self._array(index, gradient)
        if x.dtype == gradient.dtype:
            torch.div(gradient, self._transport.size, out=x)
        else:
            x.copy_(gradient).div_(self._transport.size)
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        self._under_way.append((start_allreduce(x.numpy(), self._transport), x, gradient, future))
        return future

    def finish(self) -> None:
        """Wait for all that has been started."""
        under_way, self._under_way = self._under_way, []
        for pending, x, gradient, future in under_way:
            pending.wait()
            future.set_result(x if x.dtype == gradient.dtype else gradient.copy_(x))

    def _array(self, index: int, gradient: torch.Tensor) -> torch.Tensor:
        """This bucket's array. A collective where the bucket is new or another than before."""
        array, dtype = self._arrays.get(index), _summed_as(gradient.dtype)
        if array is None or (array.shape, array.dtype) != (gradient.shape, dtype):
            numbers = self._transport.empty(gradient.numel(), str(dtype).removeprefix("torch."))
            array = self._arrays[index] = torch.from_numpy(numbers)
        return array


def _summed_as(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in SUMMED_WIDER else dtype


def _check(name: str, tensor: torch.Tensor) -> None:
    """Refuse what hpcps cannot sum."""
    if tensor.device.type != "cpu":
        raise ModelError(f"{name} is on {tensor.device}; hpcps sums gradients in the memory of CPUs: model.cpu()")
    if tensor.layout != torch.strided:
        raise ModelError(f"{name} is {tensor.layout}; hpcps sums dense gradients: Embedding(..., sparse=False)")
    if tensor.dtype not in SUMMED + SUMMED_WIDER:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in SUMMED + SUMMED_WIDER)
        raise ModelError(f"{name} is {tensor.dtype}; hpcps sums {names}")


class TorchTicket(Ticket):
    """A message of gloo's, which says whether it has moved only to who waits for it.

    To :meth:`done` a message that nobody has waited for has not moved; who asks again has a thread wait for it.
    """

    __slots__ = ("asked", "buffer", "changed", "error", "finished", "member", "watched", "work")

    def __init__(self, peer: int, member: int, what: str, work: Any, buffer: Any, changed: threading.Condition) -> None:
        super().__init__(peer, what)
        self.member = member  # the peer's rank in the process group: what messages for people name
        self.work = work
        self.changed = changed
        self.buffer = buffer  # gloo does not keep it alive
        self.asked = self.watched = self.finished = False
        self.error: RuntimeError | None = None

    def done(self) -> bool:
        if self.asked and not self.finished:
            self.watch()
        self.asked = True
        return self.finished

    def watch(self) -> None:
        """Have a thread wait for it, which notifies ``changed``."""
        if not self.watched:
            self.watched = True
            threading.Thread(target=self._wait, name=f"hpcps: {self.what} {self.peer}", daemon=True).start()

    def _wait(self) -> None:
        try:
            self.work.wait(NEVER)
        except RuntimeError as error:
            self.error = error
        with self.changed:
            self.finished = True
            self.changed.notify_all()


class TorchTransport(Transport):
    """The ranks of a process group of torch.distributed (default: all), and messages over its gloo. Making it is a
    collective over the group.

    It shares the group's connections with torch's own collectives; its messages and those of other transports and of
    ``dist.send`` with a tag below 65536 do not mix. gloo sets its own terms: a rank cannot send to itself; a message
    longer than the receiver's buffer ends the receiver's process; and a wait that runs out of time closes the
    connections of the group, so that every rank's waits end, and nothing can be sent over the group any more.
    Raises ConfigError where there is no process group or its CPU tensors do not go over gloo.
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None, timeout_s: float = TIMEOUT_S) -> None:
        group = _gloo(process_group)
        members = list(range(group.size()))
        self._set_up(group, members, SETTING_UP, timeout_s, threading.Condition())
        self._context = self._new_context(members)

    def _set_up(
        self,
        group: dist.ProcessGroup,
        members: list[int],
        context: int,
        timeout_s: float,
        changed: threading.Condition,
    ) -> None:
        self.rank = members.index(group.rank())
        self.size = len(members)
        self.timeout_s = timeout_s
        self._group = group
        self._members = members
        self._context = context
        self._changed = changed  # one for a transport and its groups: wait_any may be given tickets of several
        self._checked_s = 0.0

    def isend(self, buffer: Array, to: int, tag: int) -> Ticket:
        tensor = _bytes(buffer if buffer.flags.writeable else buffer.copy())
        return self._start("send to", self._group.send, tensor, to, tag)

    def irecv(self, buffer: Array, source: int, tag: int) -> Ticket:
        return self._start("receive from", self._group.recv, _bytes(buffer), source, tag)

    def wait(self, *tickets: Ticket) -> None:
        deadline = time.monotonic() + self.timeout_s
        for ticket in cast(tuple[TorchTicket, ...], tickets):
            if ticket.watched:
                self._wait_until_one_is_done([ticket], deadline)
            elif not ticket.finished:
                self._wait_for(ticket, deadline)
            self._raise_error(ticket)

    def wait_any(self, tickets: Sequence[Ticket]) -> int:
        awaited = cast(Sequence[TorchTicket], tickets)
        position = self._wait_until_one_is_done(awaited, time.monotonic() + self.timeout_s)
        self._raise_error(awaited[position])
        return position

    def group(self, ranks: Sequence[int]) -> Transport:
        members = [self._members[rank] for rank in ranks]
        group = object.__new__(TorchTransport)
        group._set_up(self._group, members, self._new_context(ranks), self.timeout_s, self._changed)
        group.in_flight = self.in_flight
        return group

    def check(self) -> None:
        """Twice a second: start to receive what nobody sends from each of the others; gloo refuses where
        the connection is closed."""
        if time.monotonic() < self._checked_s + CHECK_S:
            return
        self._checked_s = time.monotonic()
        for peer in range(self.size):
            if peer != self.rank:
                self._start("hear from", self._group.recv, torch.empty(0, dtype=torch.uint8), peer, NO_TAG)

    def abort(self, error: BaseException) -> None:
        """Close the connections of the whole process group: every wait on it ends, in hpcps with PeerLost, in torch's
        own collectives with RuntimeError. This process goes on."""
        if self._group.size() > 1:
            other = (self._group.rank() + 1) % self._group.size()
            nothing = torch.empty(0, dtype=torch.uint8)
            with contextlib.suppress(RuntimeError):  # gloo closes them when a wait runs out of time
                self._group.recv([nothing], other, SETTING_UP * TAGS + NO_TAG).wait(timedelta(milliseconds=1))

    @property
    def description(self) -> str:
        return "torch.distributed (gloo)"

    @property
    def node(self) -> str:
        return os.uname().nodename

    def make_memory(self) -> Memory:
        return ProcessMemory(self)

    def crowded(self, is_crowded: bool) -> None:
        """Nothing changes: gloo always sleeps while it waits."""

    def _start(self, what: str, start: Any, tensor: torch.Tensor, peer: int, tag: int) -> Ticket:
        try:
            work = start([tensor], self._members[peer], self._context * TAGS + tag)
        except RuntimeError as error:
            raise self._lost(what, self._members[peer], error) from error
        return TorchTicket(peer, self._members[peer], what, work, tensor, self._changed)

    def _wait_for(self, ticket: TorchTicket, deadline: float) -> None:
        left_ms = max(1, math.ceil(1000 * (deadline - time.monotonic())))
        try:
            ticket.work.wait(timedelta(milliseconds=left_ms))
        except RuntimeError as error:
            if time.monotonic() >= deadline:
                raise self._late([ticket]) from error
            ticket.error = error
        ticket.finished = True

    def _wait_until_one_is_done(self, tickets: Sequence[TorchTicket], deadline: float) -> int:
        """The position of a ticket that is done. The threads wait; this one waits for them."""
        with self._changed:
            while (position := _first_finished(tickets)) is None:
                for ticket in tickets:
                    ticket.watch()
                if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    raise self._late(tickets)
            return position

    def _raise_error(self, ticket: TorchTicket) -> None:
        if ticket.error is not None:
            raise self._lost(ticket.what, ticket.member, ticket.error) from ticket.error

    def _late(self, tickets: Sequence[TorchTicket]) -> CommTimeout:
        late = ", ".join(str(member) for member in sorted({ticket.member for ticket in tickets}))
        waited = f"rank {self._group.rank()} waited {self.timeout_s:g} s to {tickets[0].what} rank"
        return CommTimeout(f"{waited}{'s' * (', ' in late)} {late}; a longer wait is timeout_s")

    def _lost(self, what: str, member: int, error: RuntimeError) -> PeerLost:
        return PeerLost(f"rank {self._group.rank()} could not {what} rank {member}: {_short(error)}")

    def _new_context(self, ranks: Sequence[int]) -> int:
        """A number that no other transport over the process group has; the ranks' first one takes it from the store."""
        first, *others = ranks
        number = np.zeros(1, np.int64)
        if self.rank != first:
            self.wait(self.irecv(number, first, CONTEXT_TAG))
        else:
            number[0] = self._group.get_group_store().add(CONTEXT_KEY, 1)
            self.wait(*[self.isend(number, other, CONTEXT_TAG) for other in others])
        if number[0] >= SETTING_UP:
            raise CommError(f"more than {SETTING_UP - 1} transports and groups over one process group")
        return int(number[0])


def _first_finished(tickets: Sequence[TorchTicket]) -> int | None:
    return next((position for position, ticket in enumerate(tickets) if ticket.finished), None)


def _gloo(process_group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    if not dist.is_initialized():
        raise ConfigError("there is no process group; torch.distributed.init_process_group('gloo') comes first")
    group = dist.group.WORLD if process_group is None else process_group
    backends = dist.get_backend_config(group)
    if "cpu:gloo" not in backends.split(","):
        raise ConfigError(
            f"the process group has {backends}; hpcps needs cpu:gloo, or under MPI transport=hpcps.world()"
        )
    return group


def _bytes(buffer: Array) -> torch.Tensor:
    if not buffer.flags.c_contiguous:
        raise ValueError("a message buffer must be C-contiguous")
    return torch.from_numpy(buffer.reshape(-1).view(np.uint8))


def _short(error: RuntimeError) -> str:
    """What gloo says without its source line and advice.

    >>> _short(RuntimeError("[/gloo/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:4711. This is typically ..."))
    'Connection closed by peer [10.0.0.1]:4711'
    """
    return re.sub(r"^\[[^]]*\.cc:\d+\] ", "", str(error).splitlines()[0]).split(". ")[0]
