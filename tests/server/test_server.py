"""Shards, messages and the server loop, against the same sums done plainly."""

import hpcps_kernels
import numpy as np
import pytest

from hpcps import optim
from hpcps.config import Optimizer
from hpcps.errors import CommError, ConfigError, PeerLost
from hpcps.server import messages, sharding
from hpcps.server.client import DirectClient, RemoteClient
from hpcps.server.messages import Header, Kind, Message
from hpcps.server.serve import Server
from hpcps.server.store import Shard
from hpcps.sums import Decoder

KERNELS = hpcps_kernels.load("reference")
OPTIMIZER = optim.make(Optimizer(kind="adam", learning_rate=0.1, beta1=0.8), KERNELS)
STEPS = 4


def gradient(step, worker, count, exact):
    values = np.random.default_rng(step * 100 + worker).normal(size=count)
    return np.rint(values * 2**40).astype(np.int64) if exact else values.astype(np.float32)


def plain(count, workers, exact):
    """The parameters after STEPS, computed in one place."""
    params = np.arange(count, dtype=np.float32)
    state = OPTIMIZER.init(params)
    decoder = Decoder(exact, np.float32, KERNELS)
    for step in range(1, STEPS + 1):
        total = gradient(step, 0, count, exact)
        for worker in range(1, workers):
            decoder.add_into(total, gradient(step, worker, count, exact))
        OPTIMIZER.update(params, state, decoder.gradient(total, 2.0**40), 0.5, step)
    return params


def make_shard(params, decoder, workers):
    return Shard(params, OPTIMIZER, decoder, workers, 0.5)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("count", [3, 4, 101])
def test_workers_and_shards_on_ranks_of_their_own(on_ranks, workers, shards, exact, count):
    slices = sharding.shard_slices(count, shards)
    roles = sharding.roles(workers + shards, shards)

    def body(transport):
        decoder = Decoder(exact, np.float32, KERNELS)
        params = np.arange(count, dtype=np.float32)
        if transport.rank >= workers:
            number = transport.rank - workers
            shard = make_shard(params[slices[number]].copy(), decoder, workers)
            Server(transport, shard, number, list(range(workers)), decoder).run()
            return None
        servers = [roles.server_rank(shard) for shard in range(shards)]
        client = RemoteClient(transport, params, slices, servers, transport.rank, decoder)
        for step in range(1, STEPS + 1):
            client.push_pull(step, gradient(step, transport.rank, count, exact), 2.0**40 if exact else 1.0).wait()
        client.finish()
        return params

    for params in on_ranks(workers + shards, body)[:workers]:
        assert np.array_equal(params, plain(count, workers, exact))


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("exact", [False, True])
def test_worker_and_shards_in_one(shards, exact):
    params = np.arange(101, dtype=np.float32)
    slices = sharding.shard_slices(101, shards)
    decoder = Decoder(exact, np.float32, KERNELS)
    client = DirectClient([make_shard(params[part], decoder, 1) for part in slices], slices)
    for step in range(1, STEPS + 1):
        client.push_pull(step, gradient(step, 0, 101, exact), 2.0**40 if exact else 1.0).wait()
    client.finish()
    assert np.array_equal(params, plain(101, 1, exact))


def test_a_sum_does_not_depend_on_who_pushed_first():
    decoder = Decoder(False, np.float32, KERNELS)
    found = set()
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        shard = make_shard(np.zeros(100, np.float32), decoder, 3)
        done = [shard.push(worker, 1, gradient(1, worker, 100, False), 1.0) for worker in order]
        assert done == [False, False, True]
        found.add(shard.params.tobytes())
    assert len(found) == 1


@pytest.mark.parametrize(("worker", "step"), [(0, 1), (1, 0), (1, 2)])
def test_a_push_out_of_turn_is_refused(worker, step):
    shard = make_shard(np.zeros(3, np.float32), Decoder(False, np.float32, KERNELS), 2)
    shard.push(0, 1, np.ones(3, np.float32), 1.0)
    with pytest.raises(CommError, match=f"worker {worker} pushed step {step} to a shard that is at step 0"):
        shard.push(worker, step, np.ones(3, np.float32), 1.0)


def test_a_worker_that_fails_ends_the_server(on_ranks):
    def body(transport):
        decoder = Decoder(False, np.float32, KERNELS)
        if transport.rank == 1:
            Server(transport, make_shard(np.zeros(3, np.float32), decoder, 1), 0, [0], decoder).run()
        raise ValueError("broken")

    _, errors = on_ranks.run(2, body)
    assert isinstance(errors[1], PeerLost)


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i8"])
def test_a_header_survives_the_wire(on_ranks, dtype):
    header = Header(Kind.PUSH_PULL, 3, 2, 2**40, 7, np.dtype(dtype), 2.0**-20)

    def body(transport):
        message = Message(transport, 10, dtype)
        buffer = message.write(header)
        assert len(buffer) == messages.HEADER_BYTES + 7 * np.dtype(dtype).itemsize
        return message.read()

    assert on_ranks(1, body) == [header]


def test_a_message_of_anything_else_is_refused(on_ranks):
    def body(transport):
        message = Message(transport, 4, np.float32)
        message.write(Header(Kind.PUSH_PULL, 0, 0, 1, 4))
        damaged = {0: b"X", 4: b"\x02", 24: b"\x05", 32: b"\x01"}
        for place, value in damaged.items():
            before = message.buffer.copy()
            message.buffer[place] = value[0]
            with pytest.raises(CommError):
                message.read()
            message.buffer[:] = before
        for place, value in ((6, 99), (32, 77)):
            before = message.buffer.copy()
            message.buffer[place] = value
            with pytest.raises(CommError, match=r"kind|encoding"):
                message.read()
            message.buffer[:] = before
        return message.read().count

    assert on_ranks(1, body) == [4]


def test_roles():
    assert sharding.roles(1, 3) == sharding.Roles(1, 0)
    assert sharding.roles(3, 1) == sharding.Roles(2, 1)
    with pytest.raises(ConfigError, match=r"server\.count = 2 leaves no worker among 2 ranks; use at least 3"):
        sharding.roles(2, 2)
