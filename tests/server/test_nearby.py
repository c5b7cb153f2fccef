"""Dense sections that are named by their place in memory which worker and shard see."""

import hpcps_kernels
import numpy as np
import pytest

from hpcps import optim
from hpcps.comm.order import in_turn
from hpcps.config import Optimizer
from hpcps.errors import CommError
from hpcps.params import Params
from hpcps.rows import Merger, PulledRows, Rows
from hpcps.server import sharding
from hpcps.server.client import RemoteClient
from hpcps.server.nearby import TRAVELS, Nearby, nearby
from hpcps.server.serve import Server
from hpcps.server.store import Shard
from hpcps.server.table import WholeTable
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
