"""What a transport promises, checked of TorchTransport on the ranks of a gloo job; test_hook.py starts each.

Every rank runs all of it; an assertion that fails ends the job. Rank 0 ends with a line of what was checked.
"""

import sys
import threading
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist

import hpcps
import hpcps.torch
from hpcps.comm import ring
from hpcps.comm.meeting import Meeting
from hpcps.errors import CommTimeout, PeerLost

SIZES = [0, 1, 2, 3, 4, 5, 64, 65, 1001, 70001]
LATE = 5


def collectives(t):
    """Every size and dtype: closed-form totals, the same bits on all ranks."""
    for dtype in ("float32", "float64", "int64"):
        for count in SIZES:
            x = (np.arange(count) % 1000 * t.size + t.rank).astype(dtype)
            expected = np.arange(count) % 1000 * t.size**2 + t.size * (t.size - 1) // 2
            assert np.array_equal(hpcps.allreduce(x, t), expected.astype(dtype)), (dtype, count)
    noise = np.random.default_rng(t.rank).normal(size=1001)
    hpcps.allreduce(noise, t)
    bits = Meeting(t).gather(noise.view(np.int64)).reshape(t.size, -1)
    assert (bits == bits[0]).all()
    assert Meeting(t).gather(np.full(t.rank, t.rank)).tolist() == [r for r in range(t.size) for _ in range(r)]


def order(t):
    """Messages of one tag come in order, tags do not mix, empty, short, read-only and two-dimensional ones arrive."""
    if t.rank == 1:
        read_only = np.arange(6.0).reshape(2, 3)
        read_only.flags.writeable = False
        sent = [t.isend(np.array([i]), 0, tag) for i in range(5) for tag in (7, 8)]
        t.wait(*sent, t.isend(np.empty(0), 0, 9), t.isend(read_only, 0, 9), t.isend(np.empty(0), 0, 9))
    if t.rank == 0:
        for tag in (8, 7):
            found = [np.empty(1, int) for _ in range(5)]
            t.wait(*[t.irecv(one, 1, tag) for one in found])
            assert [int(one[0]) for one in found] == list(range(5))
        nothing, longer = np.empty(0), np.full((3, 3), -1.0)
        t.wait(t.irecv(nothing, 1, 9), t.irecv(longer, 1, 9), t.irecv(nothing, 1, 9))
        assert longer.tolist() == [[0, 1, 2], [3, 4, 5], [-1, -1, -1]]
    with pytest.raises(ValueError, match="C-contiguous"):
        t.isend(np.zeros((3, 3))[:, 1], (t.rank + 1) % t.size, 9)


def tickets(t):
    """Of several messages wait_any gives the one that came; done says so in the end; waiting again is nothing."""
    if t.rank == 0:
        buffers = [np.zeros(1) for _ in range(2)]
        awaited = [t.irecv(buffer, 1, 20 + tag) for tag, buffer in enumerate(buffers)]
        assert not awaited[0].done()
        while not awaited[1].done():
            time.sleep(0.001)
        assert t.wait_any(awaited) == 1
        assert (buffers[1][0], awaited[0].done(), awaited[1].done()) == (21, False, True)
        t.wait(t.isend(np.empty(0), 1, 22), awaited[1], awaited[0], awaited[0])
        assert (buffers[0][0], awaited[0].done()) == (20, True)
        assert t.wait_any(awaited) == 0
    if t.rank == 1:
        t.wait(t.isend(np.array([21.0]), 0, 21))
        t.wait(t.irecv(np.empty(0), 0, 22))
        t.wait(t.isend(np.array([20.0]), 0, 20))


def groups(t):
    """Groups of some ranks, in another order, and transports over the same process group do not hear each other."""
    members = list(range(t.size))[::-1][: max(1, t.size - 1)]
    if t.rank in members:
        group = t.group(members)
        assert (members[group.rank], group.size) == (t.rank, len(members))
        inner = group.group(list(range(group.size))[::-1])
        assert inner.in_flight is t.in_flight
        assert hpcps.allreduce(np.array([float(t.rank)]), group) == sum(members)
        assert hpcps.allreduce(np.array([float(t.rank)]), inner) == sum(members)
    same = [t.group(range(t.size)), hpcps.torch.TorchTransport(None, 60), t]
    left, right = (t.rank - 1) % t.size, (t.rank + 1) % t.size
    found = [np.zeros(1) for _ in same]
    moving = [one.isend(np.array([10.0 * place + t.rank]), right, 2) for place, one in enumerate(same)]
    moving += [one.irecv(found[place], left, 2) for place, one in reversed(list(enumerate(same)))]
    t.wait(*moving)
    assert [float(one[0]) for one in found] == [10.0 * place + left for place in range(3)]
    half = dist.new_group([0, 1])
    if t.rank < 2:
        assert hpcps.allreduce(np.array([1.0]), hpcps.torch.TorchTransport(half)) == 2


def halves(t):
    """A collective in two halves, with torch's own between them."""
    x, own = np.full(1001, float(t.rank)), torch.ones(3)
    pending = ring.RingAllreduce(t, lambda into, values: into.__iadd__(values)).start(x)
    dist.all_reduce(own)
    pending.wait()
    assert (x == t.size * (t.size - 1) / 2).all()
    assert (own == t.size).all()


def memory(t):
    """Ranks that know each other through gloo alone share memory all the same."""
    assert t.empty(5, "int64").tolist() == [0] * 5
    assert t.memory.nodes == [list(range(t.size))]
    shared, own = t.empty(100_001, "float32"), np.empty(100_001, np.float32)
    for number in range(20):
        for x in (shared, own):
            x.fill(t.rank + number)
            hpcps.allreduce(x, t)
            assert (x == t.size * number + t.size * (t.size - 1) // 2).all(), (number, x)


def watched_waits(t):
    """A wait_any for what does not come ends and names the peers; what comes late is received after all."""
    if t.rank == 0:
        x, y = np.zeros(2), np.zeros(1)
        late, later = t.irecv(x, 1, 50), t.irecv(y, t.size - 1, 51)
        before, t.timeout_s = t.timeout_s, 0.05
        for _ in range(2):
            peers = "rank 1" if t.size == 2 else f"ranks 1, {t.size - 1}"
            with pytest.raises(CommTimeout, match=rf"^rank 0 waited 0\.05 s to receive from {peers}; .*timeout_s"):
                t.wait_any([late, later])
        with pytest.raises(CommTimeout, match=r"^rank 0 waited 0\.05 s to receive from rank 1; "):
            t.wait(late)
        t.timeout_s = before
    t.barrier()
    if t.rank == 1:
        t.wait(t.isend(np.array([4.0, 5.0]), 0, 50))
    if t.rank == t.size - 1:
        t.wait(t.isend(np.array([6.0]), 0, 51))
    if t.rank == 0:
        t.wait(late, later)
        assert (x.tolist(), y.tolist()) == ([4, 5], [6])


def last_wait(t):
    """A wait that runs out of time names the peer and closes the connections: the others do not wait for long."""
    if t.rank == 0:
        t.timeout_s = 0.2
        with pytest.raises(CommTimeout, match=r"^rank 0 waited 0\.2 s to receive from rank 1; .*timeout_s"):
            t.wait(t.irecv(np.empty(1), 1, 60))
        with pytest.raises(PeerLost, match=r"^rank 0 could not send to rank 1: "):
            t.wait(t.isend(np.empty(1), 1, 61))
    else:
        with pytest.raises(PeerLost, match=rf"^rank {t.rank} could not receive from rank 0: .*[Cc]losed"):
            t.wait(t.irecv(np.empty(1), 0, 61))


def abort(t):
    """One rank aborts and the others' waits end, for messages and in memory."""
    if t.rank == 1:
        t.abort(RuntimeError("no luck"))
        return
    for wait in (t.wait, lambda ticket: t.wait_any([ticket])):
        with pytest.raises(PeerLost, match="rank 1"):
            wait(t.irecv(np.empty(1), 1, 70))
    with pytest.raises(PeerLost, match="rank 1"):
        hpcps.allreduce(np.empty(5), t)


def main():
    store, rank, size, ending = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    transport = hpcps.torch.TorchTransport(timeout_s=60)
    assert (transport.rank, transport.size) == (rank, size)
    checks = [collectives, order, tickets, groups, halves, memory, watched_waits]
    for check in checks:
        check(transport)
        transport.barrier()
    last = {"last_wait": last_wait, "abort": abort}[ending]
    last(transport)
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join(LATE)
            assert not thread.is_alive(), f"{thread.name} still waits"
    if rank == 0:
        print("checked:", *(check.__name__ for check in [*checks, last]), flush=True)


main()
