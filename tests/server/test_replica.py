"""Copies of shards on other ranks: they come to the same parameters, rows and state, whatever the workers do."""

import random
import time

import hpcps_kernels
import numpy as np
import pytest

from hpcps import optim
from hpcps.comm.order import in_turn
from hpcps.config import Optimizer
from hpcps.errors import CommError
from hpcps.first import FirstRows
from hpcps.rows import Merger, PulledRows, Rows
from hpcps.server import sharding
from hpcps.server.messages import UNBOUNDED
from hpcps.server.remote import RemoteClient
from hpcps.server.replica import Replication
from hpcps.server.serve import Server
from hpcps.server.store import Shard
from hpcps.server.table import Table
from hpcps.sums import Decoder, Summed

KERNELS = hpcps_kernels.load("reference")
ADAM = optim.make(Optimizer(kind="adam", learning_rate=0.1), KERNELS)
ROWS, STEPS = 9, 7


def make_shard(dense, workers):
    tables = {"table": Table(FirstRows((ROWS, 2), 5, 0.1), np.float32, ADAM, KERNELS)}
    rest = Decoder(False, np.float32, KERNELS), Merger(KERNELS), in_turn(workers), 0.5, tables
    return Shard(dense, ADAM, *rest)


def run(on_ranks, workers, shards, count, slack, colocated=False, spoil=False):
    """On each rank with a shard: the shard, and its copy of the one before."""
    roles = sharding.roles(workers + (0 if colocated else shards), shards, colocated)
    shards, slices = roles.servers, sharding.shard_slices(count, roles.servers)

    def body(transport):
        number, server, held = transport.rank - (0 if colocated else workers), None, None
        decoder = Decoder(False, np.float32, KERNELS)
        if number >= 0:
            before, behind = (number - 1) % shards, (number + 1) % shards
            own, copy = (make_shard(np.zeros(count, np.float32)[slices[n]].copy(), workers) for n in (number, before))
            if spoil and number == 0:
                copy.params[:1] += 1
            ranks = roles.server_rank(before), roles.server_rank(behind)
            follows = Replication(transport, number, own, copy, *ranks)
            rest = list(range(workers)), decoder, [1] * workers
            server = Server(transport, own, number, *rest, copies=slack != 0, replication=follows)
            held = own, copy
            if not colocated:
                server.run()
                return held
        dense, rows = np.zeros(count, np.float32), PulledRows({"table": 2}, np.float32, KERNELS)
        ranks = [roles.server_rank(shard) for shard in range(shards)]
        client = RemoteClient(transport, dense, rows, slices, ranks, transport.rank, decoder, server)
        rng = np.random.default_rng(transport.rank)
        for step in range(1, STEPS + 1):
            time.sleep(random.random() * 0.002)
            keys = np.sort(rng.permutation(ROWS)[: rng.integers(0, ROWS)])
            values = rng.normal(size=(len(keys), 2)).astype(np.float32)
            gradient = rng.normal(size=count).astype(np.float32)
            client.push(step, Summed(gradient, 1.0, {"table": Rows(keys, values)}), slack)
            client.pull(step, {"table": keys}, slack)
        client.pull(STEPS, None, slack)
        client.meet()
        client.finish()
        return held

    return [held for held in on_ranks(workers + (0 if colocated else shards), body) if held is not None]


@pytest.mark.parametrize("slack", [0, 2, UNBOUNDED])
@pytest.mark.parametrize(("shards", "colocated"), [(2, False), (3, False), (0, True)])
@pytest.mark.parametrize("count", [7, 5000])
def test_a_copy_is_what_the_shard_is(on_ranks, slack, shards, colocated, count):
    held = run(on_ranks, 3, shards, count, slack, colocated)
    every = np.arange(ROWS)
    for number, (_, copy) in enumerate(held):
        leader = held[number - 1][0]
        assert leader.updates == copy.updates == (STEPS if slack == 0 else 3 * STEPS)
        assert leader.params.any()
        assert np.array_equal(leader.params, copy.params)
        for name, array in leader.state.items():
            assert np.array_equal(array, copy.state[name])
        assert len(leader.tables["table"]) == len(copy.tables["table"]) > 0
        assert np.array_equal(leader.tables["table"].pull(every), copy.tables["table"].pull(every))


def test_a_copy_that_is_not_is_an_error(on_ranks):
    with pytest.raises(CommError, match="the copy of shard 1 is not what the shard has come to"):
        run(on_ranks, 2, 2, 7, 0, spoil=True)
