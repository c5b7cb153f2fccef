"""What a transport promises, checked on the ranks of an MPI job: ``mpiexec -n N python contract.py``.

Every rank runs all of it; an assertion that fails ends the job. Rank 0 ends with a line of what was checked.
"""

import os
import sys
import traceback

import hpcps_kernels
import numpy as np
import pytest

import hpcps
from hpcps import optim
from hpcps.averaging import Mean
from hpcps.collectives.choice import ALGORITHMS, Choice
from hpcps.collectives.engine import Engine
from hpcps.comm import compressed, doubling, mpi, ring
from hpcps.comm.checked import CheckedTransport
from hpcps.comm.gather import all_gather_rows
from hpcps.comm.meeting import Meeting
from hpcps.comm.order import in_turn, order, pieces
from hpcps.comm.topology import chunk_bounds
from hpcps.comm.tree import TreeAllreduce
from hpcps.config import Optimizer
from hpcps.errors import CommTimeout, DataError
from hpcps.first import FirstRows
from hpcps.params import Params
from hpcps.rows import Merger, PulledRows, Rows
from hpcps.server.backup import BackupShard
from hpcps.server.remote import RemoteClient
from hpcps.server.serve import Server
from hpcps.server.sharding import roles, shard_slices
from hpcps.server.shown import Viewer
from hpcps.server.store import Shard
from hpcps.server.table import Table
from hpcps.sums import Decoder, Summed
from hpcps.together import agree

KERNELS = hpcps_kernels.load("cpu")
SIZES = [0, 1, 2, 3, 4, 5, 64, 65, 1001, 70001]


def collectives(t):
    """Every size and dtype: closed-form totals, each chunk in its place, the same bits on all ranks."""
    for dtype in ("float32", "float64", "int64"):
        for count in SIZES:
            x = (np.arange(count) % 1000 * t.size + t.rank).astype(dtype)
            expected = np.arange(count) % 1000 * t.size**2 + t.size * (t.size - 1) // 2
            own = x.copy()
            doubled = x.copy()
            doubling.allreduce(t, doubled, KERNELS.add_into)
            assert np.array_equal(hpcps.allreduce(x, t), expected.astype(dtype)), (dtype, count)
            assert np.array_equal(doubled, x), (dtype, count)
            part = ring.reduce_scatter(t, own, KERNELS.add_into)
            assert np.array_equal(own[part], expected[part].astype(dtype)), (dtype, count)
            bounds = chunk_bounds(count, t.size)
            gathered = np.full(count, -1, dtype)
            gathered[bounds[t.rank] : bounds[t.rank + 1]] = t.rank
            ring.all_gather(t, gathered)
            assert np.array_equal(gathered, np.repeat(np.arange(t.size), np.diff(bounds)).astype(dtype))
    for reduce in (hpcps.allreduce, lambda x, t: doubling.allreduce(t, x, KERNELS.add_into)):
        noise = np.random.default_rng(t.rank).normal(size=1001)
        reduce(noise, t)
        bits = Meeting(t).gather(noise.view(np.int64)).reshape(t.size, -1)
        assert (bits == bits[0]).all()


def several(t):
    """Collectives in segments, several on their way, also in a group; waited for in another order on each rank."""
    for one in (t, CheckedTransport(t)):
        group = one.group(range(t.size)[::-1])
        for segment_bytes in (4096, ring.SEGMENT_BYTES):
            ways = [ring.RingAllreduce(way, KERNELS.add_into, segment_bytes) for way in (one, group)]
            ways += [doubling.DoublingAllreduce(way, KERNELS.add_into) for way in (one, group)]
            arrays = [(np.arange(count) % 1000 * t.size + t.rank).astype("float32") for count in SIZES]
            tickets = [ways[i % 4].start(x) for i, x in enumerate(arrays)]
            for i in np.random.default_rng(t.rank).permutation(len(SIZES)):
                while not tickets[i].done() and t.rank % 2:
                    os.sched_yield()
                tickets[i].wait()
                expected = np.arange(SIZES[i]) % 1000 * t.size**2 + t.size * (t.size - 1) // 2
                assert np.array_equal(arrays[i], expected.astype("float32")), (segment_bytes, SIZES[i])
        assert not one.in_flight


def facts(t):
    """Gather, once, agree."""
    together = Meeting(t)
    assert together.gather(np.full(t.rank, t.rank)).tolist() == [r for r in range(t.size) for _ in range(r)]
    assert together.once(lambda: np.arange(3.0)).tolist() == [0, 1, 2]

    def work():
        if t.rank == t.size - 1:
            raise DataError("x.csv: line 3: no")

    with pytest.raises(DataError, match=r"^x\.csv: line 3: no$") as caught:
        agree(together, work)
    assert caught.value.known_to_all


def waits(t):
    """A wait for what does not come ends and names the peer; what comes late is received after all."""
    if t.size == 1:
        return
    if t.rank == 0:
        x = np.zeros(2)
        late = t.irecv(x, 1, 50)
        before, t.timeout_s = t.timeout_s, 0.05
        for wait in (lambda: t.wait(late), lambda: t.wait_any([late])):
            with pytest.raises(CommTimeout, match=r"rank 0 waited 0\.05 s to receive from rank 1"):
                wait()
        t.timeout_s = before
    t.barrier()
    if t.rank == 1:
        t.wait(t.isend(np.array([4.0, 5.0]), 0, 50))
    if t.rank == 0:
        t.wait(late)
        assert x.tolist() == [4, 5]


def groups(t):
    """A group of some ranks, in another order, does not hear the others."""
    members = list(range(t.size))[::-1][: max(1, t.size - 1)]
    if t.rank in members:
        group = t.group(members)
        assert members[group.rank] == t.rank
        x = np.array([float(t.rank)])
        assert hpcps.allreduce(x, group) == sum(members)


def memory(t):
    """Memory of the node: seen by all, and sums of arrays in it and outside, in and out of turn."""
    mine = t.empty(1001, np.int64)
    mine[:] = t.rank
    t.barrier()
    for rank, piece in enumerate(t.memory.pieces(8)):
        assert rank == t.rank or not piece.any()
    for number in range(30):
        arrays = [mine, np.empty(3), np.empty(70_001, np.float32)]
        for x in arrays:
            x[:] = t.rank + number
        tickets = [hpcps.start_allreduce(x, t) for x in arrays]
        for ticket in tickets if t.rank % 2 else tickets[::-1]:
            ticket.wait()
        for x in arrays:
            assert (x == t.size * number + t.size * (t.size - 1) // 2).all(), (number, x)


def algorithms(t):
    """Every all-reduce that can be used here, of every dtype; the same bits on all ranks."""
    layout = Engine(t, KERNELS).layout
    for algorithm in [name for name in ALGORITHMS if not layout.why_not(name)]:
        engine = Engine(t, KERNELS, Choice(algorithm))
        for dtype in ("float32", "float64", "int64", "float16"):
            for count in SIZES:
                x = (np.arange(count) % 40 + t.rank).astype(dtype)
                flat = x.view(np.uint16) if dtype == "float16" else x
                engine.allreduce(flat, "float16" if dtype == "float16" else "own")
                expected = np.arange(count) % 40 * t.size + t.size * (t.size - 1) // 2
                assert np.array_equal(x, expected.astype(dtype)), (algorithm, dtype, count)
        noise = np.random.default_rng(t.rank).normal(size=1001)
        engine.allreduce(noise)
        bits = Meeting(t).gather(noise.view(np.int64)).reshape(t.size, -1)
        assert (bits == bits[0]).all(), algorithm


def codes(t):
    """All-reduces in fewer bytes, several rounds: the same bits on all ranks, no farther off than their codes."""
    for kind, share in (("bf16", 2.0**-7), ("int8", 1.01 / 127), ("topk", 2.0**-22)):
        for count in (*SIZES, 300_001):
            way = compressed.make(kind, t, count, "float32", KERNELS, fraction=1.0)
            for number in range(3):
                parts = [np.random.default_rng([number, rank]).normal(size=count) for rank in range(t.size)]
                x = parts[t.rank].astype(np.float32)
                way.start(x).wait()
                if t.size > 1:
                    allowed = 2 * share * np.abs(parts).max(axis=1, initial=0).sum()  # twice: what rounds before left
                    assert (np.abs(x - np.sum(parts, axis=0)) <= allowed).all(), (kind, count)
                bits = Meeting(t).gather(x.view(np.int32)).reshape(t.size, -1)
                assert t.size == 1 or (bits == bits[0]).all(), (kind, count)


def tree(t):
    """Grains added in tree order, in both forms, with the bits that one rank alone makes of them."""
    grains = 11
    bounds = chunk_bounds(grains, t.size)
    own = pieces(bounds[t.rank], bounds[t.rank + 1], grains)
    for count in (0, 1, t.size, 20001):
        numbers = np.random.default_rng(count).normal(size=(grains, count)).astype(np.float32)
        alone = np.empty((1, count), np.float32)
        KERNELS.sum_tree(alone, numbers, np.arange(grains), np.array(order(list(range(grains + 1))).adds))
        for small_bytes in (0, 1 << 20):
            way = TreeAllreduce(t, order(bounds), count, "float32", KERNELS.sum_tree, small_bytes)
            for _ in range(3):
                mine = np.empty((len(own), count), np.float32)
                for place, piece in zip(mine, own, strict=True):
                    adds = order([0, *range(1, len(piece) + 1)]).adds
                    KERNELS.sum_tree(place[None], numbers, np.array(piece), np.array(adds))
                way.start(mine).wait()
                assert mine[0].tobytes() == alone.tobytes()


def averages(t):
    """Weighted means of parameters, where all see them and where they are a rank's own, and of rows of a table."""
    samples = [3 + rank % 2 for rank in range(t.size)]
    for algorithm in [name for name in ALGORITHMS if not Engine(t, KERNELS).layout.why_not(name)]:
        for allocate in (t.empty, np.empty):
            params = Params({"dense": (70001,), "table": (101, 3)}, allocate(70304, np.float32), ("table",))
            params["dense"][:], params["table"][:] = t.rank, 7
            mean = Mean(Engine(t, KERNELS, Choice(algorithm)), params, samples, Merger(KERNELS), KERNELS)
            keys = np.array([50, t.rank])
            params["table"][keys] += t.rank
            mean.touch("table", keys)
            if t.size > 1:
                mean.finish(mean.start())
            expected = np.average(np.arange(t.size), weights=samples)
            np.testing.assert_allclose(params["dense"], expected, rtol=1e-6)
            np.testing.assert_allclose(params["table"][50], 7 + expected, rtol=1e-6)
            alone = 7 + np.arange(t.size) * samples / np.sum(samples)
            np.testing.assert_allclose(params["table"][: t.size, 0], alone, rtol=1e-6)
            assert (np.delete(params["table"], [*range(t.size), 50], axis=0) == 7).all()
            bits = Meeting(t).gather(params.flat.view(np.int32)).reshape(t.size, -1)
            assert (bits == bits[0]).all()


def server(t):
    """Workers and shards on ranks of their own end with what one place computes, dense parameters and a table."""
    if t.size > 1:
        serve_and_work(t, 13, None)
        assert t.memory.is_shared
        serve_and_work(t, 6000, t.memory)


def late(t):
    """Shards go on without a worker that is late; it goes on with the newest step. Gradients travel, or lie in memory
    that all see and that is written over as soon as they have been answered."""
    if t.size < 3:
        return
    for count in (101, 70_001):
        go_on_without(t, count, None)
        go_on_without(t, count, t.memory)


def go_on_without(t, count, near, steps=5):
    shards = 2 if t.size > 3 else 1
    workers = roles(t.size, shards).workers
    slices, every, pushed = shard_slices(count, shards), np.arange(3000), t.empty(count, np.float32)
    sgd = optim.make(Optimizer(kind="sgd", learning_rate=0.5), KERNELS)
    decoder, merger = Decoder(False, np.float32, KERNELS), Merger(KERNELS)
    if t.rank >= workers:
        where = slices[t.rank - workers]
        stored = {"table": Table(FirstRows((3000, 2), seed=0), np.float32, sgd, KERNELS)}
        rest = decoder, merger, in_turn(workers), 1 / workers, stored
        own = np.zeros(where.stop - where.start, np.float32)
        shard = BackupShard(own, sgd, *rest, samples=[1] * workers, backup=1)
        rest = t.rank - workers, list(range(workers)), decoder, [1] * workers
        return Server(t, shard, *rest, memory=near, letters=near).run()
    dense, rows = np.zeros(count, np.float32), PulledRows({"table": 2}, np.float32, KERNELS)
    rest = slices, list(range(workers, t.size)), t.rank, decoder
    client = RemoteClient(t, dense, rows, *rest, memory=near, letters=near)
    told, step = np.zeros(1), 1
    if t.rank == 0:  # until the others have taken all steps
        t.wait(t.irecv(told, 1, 51))
    while step <= steps:
        pushed.fill(step if t.rank else np.inf)
        own = {"table": Rows(every, np.full((3000, 2), step if t.rank else np.inf, np.float32))}
        client.push(step, Summed(pushed, 1.0, own))
        reached = client.pull(step, {"table": every})
        pushed.fill(np.nan)
        if reached > step:
            client.go_on(reached, {"table": every})
        assert reached == (steps if t.rank == 0 else step)
        step = reached + 1
    expected = np.float32(-0.5 * steps * (steps + 1) / 2)
    assert (dense == expected).all()
    np.testing.assert_allclose(rows.rows("table", every), expected, atol=1e-6)
    if t.rank == 1:
        t.wait(t.isend(told, 0, 51))
    for counts in client.finish():
        assert counts.dropped == [1] + [0] * (workers - 1)
        assert counts.skipped == [steps - 1] + [0] * (workers - 1)


def serve_and_work(t, rows, letters):
    shards = 2 if t.size > 3 else 1
    workers = roles(t.size, shards).workers
    count = 101
    slices = shard_slices(count, shards)
    optimizer = optim.make(Optimizer(kind="adagrad"), KERNELS)
    decoder, merger = Decoder(False, np.float32, KERNELS), Merger(KERNELS)

    def gradient(step, worker):
        rng = np.random.default_rng(10 * step + worker)
        dense = rng.normal(size=count).astype(np.float32)
        keys = rng.permutation(rows)[: rows // 6 + worker]
        return Summed(dense, 1.0, {"table": Rows(keys, rng.normal(size=(len(keys), 2)).astype(np.float32))})

    params = Params.zeros({"dense": (count,), "table": (rows, 2)}, np.float32, ("table",))
    first = FirstRows((rows, 2), seed=0)
    if t.rank >= workers:
        number = t.rank - workers
        stored = {"table": Table(first, np.float32, optimizer, KERNELS, memory=letters)}
        shard = Shard(params["dense"][slices[number]].copy(), optimizer, decoder, merger, in_turn(workers), 0.5, stored)
        Server(t, shard, number, list(range(workers)), decoder, [1] * workers, letters=letters).run()
        return
    pulled, every = PulledRows({"table": 2}, np.float32, KERNELS), {"table": np.arange(rows)}
    rest = slices, list(range(workers, t.size)), t.rank, decoder
    viewer = None if letters is None else Viewer({"table": first}, np.float32, KERNELS, letters)
    client = RemoteClient(t, params["dense"], pulled, *rest, letters=letters, workers=workers, viewer=viewer)
    for step in range(1, 6):
        client.push(step, gradient(step, t.rank))
        client.pull(step, {"table": np.arange(0, rows, 2)} if step < 5 else None)
    client.fetch(every)
    params["table"][:] = pulled.rows("table", every["table"])
    client.finish()
    assert np.array_equal(params.flat, in_one_place(optimizer, gradient, workers, params))
    together = all_gather_rows(t.group(range(workers)), [tuple(gradient(1, t.rank).rows["table"])])
    for worker, [(keys, values)] in enumerate(together):
        expected = gradient(1, worker).rows["table"]
        assert np.array_equal(keys, expected.keys)
        assert np.array_equal(values, expected.values)


def in_one_place(optimizer, gradient, workers, like):
    params = like.on(np.zeros_like(like.flat))
    states = [optimizer.init(params[name]) for name in ("dense", "table")]
    for step in range(1, 6):
        parts = [gradient(step, worker) for worker in range(workers)]
        dense, table, touched = np.zeros_like(params["dense"]), np.zeros_like(params["table"]), set()
        for part in parts:
            dense += part.dense
            table[part.rows["table"].keys] += part.rows["table"].values
            touched |= set(part.rows["table"].keys.tolist())
        keys = np.array(sorted(touched))
        optimizer.update(params["dense"], states[0], dense, 0.5, step)
        optimizer.update_rows(params["table"], states[1], table[keys], keys, 0.5, step)
    return params.flat


def main():
    transport = mpi.world(timeout_s=60)
    transport.crowded(transport.size > 2)
    checks = (collectives, several, facts, waits, groups, memory, algorithms, codes, tree, averages, server, late)
    try:
        for check in checks:
            check(transport)
            transport.barrier()
    except BaseException as error:
        traceback.print_exc()
        transport.abort(error)
    if transport.rank == 0:
        print("checked:", *(check.__name__ for check in checks), "on", transport.size, transport.description)
        sys.stdout.flush()


main()
