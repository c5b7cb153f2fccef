"""Dense sections that are named by their place in memory which worker and shard see."""

import hpcps_kernels
import numpy as np
import pytest

from hpcps import faster, optim
from hpcps.comm.local import LocalWorld
from hpcps.comm.memory import ThreadMemory
from hpcps.comm.order import in_turn
from hpcps.config import Optimizer
from hpcps.errors import CommError
from hpcps.first import FirstRows
from hpcps.params import Params
from hpcps.rows import Merger, PulledRows, Rows
from hpcps.server import sharding
from hpcps.server.nearby import TRAVELS, Borrowed, Nearby, for_others, nearby
from hpcps.server.remote import RemoteClient
from hpcps.server.serve import Server
from hpcps.server.store import Shard
from hpcps.server.table import Table, WholeTable
from hpcps.sums import Decoder, Summed

KERNELS = hpcps_kernels.load("reference")
SGD = optim.make(Optimizer(kind="sgd", learning_rate=0.5), KERNELS)
STEPS = 4


def part(transport, workers, shards, count, is_common):
    """One rank's part of a run whose gradients, and parameters if they are common, do not travel; its parameters."""
    decoder, memory = Decoder(False, np.float32, KERNELS), transport.memory
    params, slices = Params.zeros({"dense": (count,)}, np.float32), sharding.shard_slices(count, shards)
    if is_common:
        params = params.on(memory.common(count, np.float32))
    gradient = transport.empty(count, np.float32)
    if transport.rank >= workers:
        number = transport.rank - workers
        own = params.flat[slices[number]]
        shard = Shard(own if is_common else own.copy(), SGD, decoder, Merger(KERNELS), in_turn(workers), 1.0)
        Server(transport, shard, number, list(range(workers)), decoder, [1] * workers, memory=memory).run()
        return params.flat
    servers = list(range(workers, workers + shards))
    client = RemoteClient(transport, params.flat, None, slices, servers, transport.rank, decoder, memory=memory)
    for step in range(1, STEPS + 1):
        gradient[:] = np.arange(count) * step + transport.rank
        client.push(step, Summed(gradient, 1.0))
        client.pull(step, None)
        expected = sum(np.arange(count) * s * workers + workers * (workers - 1) / 2 for s in range(1, step + 1))
        assert np.array_equal(params.flat, -0.5 * expected)
    client.finish()
    assert client.traffic().sent_bytes == 128 * (STEPS + 1) * shards
    return params.flat


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("count", [2, 5000])
@pytest.mark.parametrize("is_common", [False, True])
def test_gradients_and_parameters_stay_where_they_are(on_ranks, workers, shards, count, is_common):
    on_ranks(workers + shards, lambda transport: part(transport, workers, shards, count, is_common))


@pytest.mark.parametrize("rows", [1, 5000])
def test_rows_follow_numbers_that_stay_where_they_are(on_ranks, rows):
    keys, values = np.arange(rows), np.ones((rows, 1), np.float32)

    def body(transport):
        decoder, memory = Decoder(False, np.float32, KERNELS), transport.memory
        params = Params.zeros({"dense": (3,)}, np.float32).on(memory.common(3, np.float32))
        gradient = transport.empty(3, np.float32)
        if transport.rank == 1:
            table = WholeTable(np.zeros((rows, 1), np.float32), SGD, KERNELS)
            shard = Shard(params.flat, SGD, decoder, Merger(KERNELS), in_turn(1), 1.0, {"table": table})
            return Server(transport, shard, 0, [0], decoder, [1], memory=memory).run()
        pulled = PulledRows({"table": 1}, np.float32, KERNELS)
        client = RemoteClient(transport, params.flat, pulled, [slice(0, 3)], [1], 0, decoder, memory=memory)
        for step in range(1, STEPS + 1):
            gradient[:] = 1
            client.push(step, Summed(gradient, 1.0, {"table": Rows(keys, values)}))
            client.pull(step, {"table": keys})
            assert (pulled.rows("table", keys) == -0.5 * step).all()
            assert (params.flat == -0.5 * step).all()
        client.finish()

    on_ranks(2, body)


def test_a_push_to_be_applied_at_once_is_refused_where_others_may_read(on_ranks):
    def body(transport):
        decoder, memory = Decoder(False, np.float32, KERNELS), transport.memory
        if transport.rank == 0:
            params = Params.zeros({"dense": (3,)}, np.float32)
            client = RemoteClient(transport, params.flat, None, [slice(0, 3)], [1], 0, decoder, memory=memory)
            client.push(1, Summed(np.ones(3, np.float32), 1.0), slack=1)
            return client.pull(1, None, 1)
        shard = Shard(np.zeros(3, np.float32), SGD, decoder, Merger(KERNELS), in_turn(1), 1.0)
        Server(transport, shard, 0, [0], decoder, [1], memory=memory).run()

    _, errors = on_ranks.run(2, body)
    assert any("at once" in str(error) for error in errors if isinstance(error, CommError))


class Two:
    """The memory of two ranks of a node, seen by the first: two regions of 64 bytes a rank."""

    def __init__(self, mine, peers):
        self.nodes, self.node, self.near = [[0, 1], [2]], 0, type("Near", (), {"rank": 0})
        self.regions = [(64, [0, 0]), (64, [mine.ctypes.data, peers.ctypes.data])]


def test_places():
    mine, peers = np.zeros(64, np.uint8), np.arange(64, dtype=np.uint8)
    near = Nearby(Two(mine, peers), 1)
    assert near.place_of(mine[8:16]) == (2, 8)
    assert near.place_of(np.zeros(64, np.uint8)) == TRAVELS
    assert near.place_of(mine[::2]) == TRAVELS
    assert near.array_at((2, 8), 3, np.dtype(np.uint8)).tolist() == [8, 9, 10]
    for place in ((0, 0), (3, 0), (2, -8), (2, 56), (2, 4)):
        with pytest.raises(CommError, match="3 numbers cannot lie at"):
            near.array_at(place, 3, np.dtype(np.float64))
    assert nearby(Two(mine, peers), 2) is None
    assert nearby(None, 1) is None


def rows_run(transport, workers, shards, lends, slack=0, steps=8):
    """One rank's part of a run with a table of rows enough for long letters, whose workers push different rows in each
    step. Returns what a worker holds at the end, and the bytes that it sent."""
    decoder, nothing = Decoder(False, np.float32, KERNELS), np.empty(0, np.float32)
    letters = transport.memory if lends and transport.memory.is_shared else None
    slices = [slice(0, 0)] * shards
    if transport.rank >= workers:
        number = transport.rank - workers
        table = Table(FirstRows((9000, 2), seed=0), np.float32, SGD, KERNELS)
        shard = Shard(nothing, SGD, decoder, Merger(KERNELS), in_turn(workers), 1.0, {"table": table})
        rest = list(range(workers)), decoder, [1] * workers
        return Server(transport, shard, number, *rest, copies=slack != 0, letters=letters).run()
    pulled = PulledRows({"table": 2}, np.float32, KERNELS)
    servers = list(range(workers, workers + shards))
    client = RemoteClient(transport, nothing, pulled, slices, servers, transport.rank, decoder, letters=letters)
    every = {"table": np.arange(9000)}
    for step in range(1, steps + 1):
        rng = np.random.default_rng(100 * step + transport.rank)
        keys = np.sort(rng.choice(9000, 4000 + 700 * (step % 4), replace=False))
        values = rng.integers(-8, 8, (len(keys), 2)).astype(np.float32)  # sums of these are exact
        if step % 3:
            client.fetch({"table": keys})  # then their keys are known
        client.push(step, Summed(nothing, 1.0, {"table": Rows(keys, values)}), slack)
        client.pull(step, {"table": keys[::2]}, slack)
    client.pull(steps, None)
    client.fetch(every)
    found = pulled.rows("table", every["table"]).copy()
    client.finish()
    return found, client.traffic().sent_bytes


@pytest.mark.parametrize("slack", [0, 2, -1])
@pytest.mark.parametrize(("workers", "shards"), [(1, 1), (2, 1), (3, 2)])
def test_keys_and_rows_that_are_lent_are_those_that_would_travel(on_ranks, workers, shards, slack):
    def runs(lends):
        return on_ranks(workers + shards, lambda transport: rows_run(transport, workers, shards, lends, slack))[
            :workers
        ]

    travelled, lent = runs(False), runs(True)
    for (expected, sent), (found, sent_of_lent) in zip(travelled, lent, strict=True):
        assert np.array_equal(found, expected)
        assert sent_of_lent < sent / 20


def test_memory_that_cannot_be_lent_is_done_without(on_ranks, monkeypatch):
    def refuse(self, size_bytes):
        raise CommError("none left")

    monkeypatch.setattr(ThreadMemory, "lend", refuse)
    (found, sent), _ = on_ranks(2, lambda transport: rows_run(transport, 1, 1, True))
    assert sent > 200_000
    assert np.abs(found).sum() > 0


def test_a_push_that_may_still_be_read_is_not_written_over(on_ranks):
    """A library's caller may push twice before it asks for all steps: the second one travels."""
    nothing, keys = np.empty(0, np.float32), np.arange(4000)

    def body(transport):
        decoder, letters = Decoder(False, np.float32, KERNELS), transport.memory
        if transport.rank == 2:
            table = Table(FirstRows((4000, 2), seed=0), np.float32, SGD, KERNELS)
            shard = Shard(nothing, SGD, decoder, Merger(KERNELS), in_turn(2), 1.0, {"table": table})
            return Server(transport, shard, 0, [0, 1], decoder, [1, 1], letters=letters).run()
        pulled = PulledRows({"table": 2}, np.float32, KERNELS)
        rest = [slice(0, 0)], [2], transport.rank, decoder
        client = RemoteClient(transport, nothing, pulled, *rest, letters=letters)
        client.fetch({"table": keys})
        begin = pulled.rows("table", keys).copy()
        for step in range(1, 7):
            client.push(step, Summed(nothing, 1.0, {"table": Rows(keys, np.full((4000, 2), step, np.float32))}))
            client.pull(step, {}, slack=5)
        client.fetch({"table": keys})
        assert np.array_equal(pulled.rows("table", keys), begin - 0.5 * 2 * sum(range(1, 7)))
        client.finish()

    on_ranks(3, body)


def test_what_is_borrowed_is_checked():
    borrowed = Borrowed(None, 3)
    with pytest.raises(CommError, match="rank 3 lends memory of its own, which is not seen here"):
        borrowed.section(np.zeros(96, np.uint8), 8)
    memory = LocalWorld(1).transports()[0].memory
    lent = memory.lend(100)
    assert len(Borrowed(memory, 3).section(lent.ticket, 100)) == 100
    with pytest.raises(CommError, match="rank 3 lends 100 bytes for a section of 101"):
        Borrowed(memory, 3).section(lent.ticket, 101)


@pytest.mark.parametrize("is_past", [False, True])
@pytest.mark.parametrize("size_bytes", [0, 1, 3, 4, 63, 80_000, 80_001])
def test_bytes_are_copied_whatever_they_mean_and_whichever_way_is_faster(monkeypatch, size_bytes, is_past):
    streamed = []

    def stream(out, x):
        streamed.append(x.nbytes)
        KERNELS.stream(out, x)

    monkeypatch.setattr(faster, "TRY_EVERY", 2)
    monkeypatch.setattr(faster, "WORTH", 0.0 if is_past else np.inf)
    x = np.random.default_rng(0).integers(0, 256, size_bytes).astype(np.uint8)
    copy = for_others(stream)
    for _ in range(7):
        room = np.full(size_bytes + 64, 7, np.uint8)
        copy(room[:size_bytes], x)
        np.testing.assert_array_equal(room[:size_bytes], x)
        assert (room[size_bytes:] == 7).all()
    if size_bytes == 80_000:  # else it is not worth it, or cannot be done
        assert len(streamed) == (4 if is_past else 3)  # each second call tries the other way
    else:
        assert not streamed
