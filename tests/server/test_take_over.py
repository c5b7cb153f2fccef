"""Shards whose ranks are lost, at any moment, and served from their copies: no push is lost, none counts twice."""

import random

import hpcps_kernels
import numpy as np
import pytest

from hpcps import optim
from hpcps.comm import codes
from hpcps.comm.order import in_turn
from hpcps.config import Optimizer
from hpcps.errors import PeerLost
from hpcps.first import FirstRows
from hpcps.rows import Merger, PulledRows, Rows
from hpcps.server import sharding
from hpcps.server.messages import COPY_TAGS, UNBOUNDED
from hpcps.server.remote import RemoteClient
from hpcps.server.replica import Replication
from hpcps.server.serve import Server
from hpcps.server.store import Shard
from hpcps.server.table import Table
from hpcps.sums import Decoder, Summed

KERNELS = hpcps_kernels.load("reference")
SGD = optim.make(Optimizer(kind="sgd", learning_rate=1.0), KERNELS)
ROWS, STEPS, WORKERS = 9, 6, 2


class KilledError(Exception):
    """What a rank dies of."""


class Mortal:
    """Lets a transport's rank die at its ``fatal``-th message or wait, and counts them."""

    def __init__(self, transport, fatal):
        self.acts = 0
        for name in ("isend", "irecv", "wait", "wait_any"):
            setattr(transport, name, self.counted(getattr(transport, name), fatal))

    def counted(self, act, fatal):
        def counting(*arguments):
            self.acts += 1
            if self.acts == fatal:
                raise KilledError
            return act(*arguments)

        return counting


def gradient_of(worker, step, count, has_rows):
    """Whole numbers, whose sums are the same in any order."""
    rng = np.random.default_rng((worker, step))
    keys = np.sort(rng.permutation(ROWS)[: rng.integers(0, ROWS)])
    rows = rng.integers(-9, 9, (len(keys), 2)).astype(np.float32)
    return rng.integers(-9, 9, count).astype(np.float32), keys, {"table": Rows(keys, rows)} if has_rows else {}


def expected(count, has_rows):
    """What all pushes together make of zeros."""
    dense, table = np.zeros(count, np.float32), np.zeros((ROWS, 2), np.float32)
    for worker in range(WORKERS):
        for step in range(1, STEPS + 1):
            gradient, keys, rows = gradient_of(worker, step, count, has_rows)
            dense -= gradient
            if has_rows:
                table[keys] -= rows["table"].values
    return dense, table


def run(on_ranks, shards, count, slack, has_rows, victim, fatal, code=None):
    """What each worker ends with, the errors of the ranks, and how often the victim has acted. ``victim``: a shard."""
    slices, acts = sharding.shard_slices(count, shards), []

    def make_shard(where):
        tables = {"table": Table(FirstRows((ROWS, 2), 5, 0.0), np.float32, SGD, KERNELS)} if has_rows else {}
        rest = Decoder(False, np.float32, KERNELS), Merger(KERNELS), in_turn(WORKERS), 1.0, tables
        return Shard(np.zeros(count, np.float32)[where].copy(), SGD, *rest)

    def serve(transport):
        number = transport.rank - WORKERS
        before, behind = (number - 1) % shards, (number + 1) % shards
        own, copy = make_shard(slices[number]), make_shard(slices[before])
        rest = list(range(WORKERS)), Decoder(False, np.float32, KERNELS), [1] * WORKERS

        how = {"copies": slack != 0, "code": codes_of(code)}

        def take_over(copied):
            return Server(transport, copied, before, *rest, **how, tags=COPY_TAGS)

        follows = Replication(transport, number, own, copy, WORKERS + before, WORKERS + behind, take_over)
        server = Server(transport, own, number, *rest, **how, replication=follows)
        mortal = Mortal(transport, fatal if number == victim else 0)
        try:
            server.run()
        finally:
            if number == victim:
                acts.append(mortal.acts)
        return own

    def work(transport):
        dense = np.zeros(count, np.float32)
        rows = PulledRows({"table": 2}, np.float32, KERNELS) if has_rows else None
        ranks = [WORKERS + shard for shard in range(shards)]
        copies = [WORKERS + (shard + 1) % shards for shard in range(shards)]
        rest = Decoder(False, np.float32, KERNELS), None, None, codes_of(code), None, WORKERS, copies
        client = RemoteClient(transport, dense, rows, slices, ranks, transport.rank, *rest)
        for step in range(1, STEPS + 1):
            gradient, _, of_rows = gradient_of(transport.rank, step, count, has_rows)
            client.push(step, Summed(gradient, 1.0, of_rows), slack)
            next_keys = {"table": gradient_of(transport.rank, step + 1, count, has_rows=True)[1]} if has_rows else {}
            client.pull(step, next_keys if step < STEPS else None, slack)
        every = np.arange(ROWS)
        if has_rows:
            client.fetch({"table": every})
        client.finish()
        return dense, rows.rows("table", every) if has_rows else np.zeros((ROWS, 2), np.float32)

    def body(transport):
        assert transport.spare(range(WORKERS, WORKERS + shards))
        return work(transport) if transport.rank < WORKERS else serve(transport)

    held, errors = on_ranks.run(WORKERS + shards, body)
    return held[:WORKERS], errors, acts[0]


def codes_of(kind):
    return kind and codes.make(kind, 64, 0.5, "float32", KERNELS)


@pytest.mark.parametrize("slack", [0, 2, UNBOUNDED])
@pytest.mark.parametrize("shards", [2, 3])
@pytest.mark.parametrize(("count", "has_rows"), [(7, False), (7, True), (9000, False), (9000, True)])
def test_every_push_counts_once_whenever_a_shard_dies(on_ranks, slack, shards, count, has_rows):
    """Letters of one message and of several; parameters are those of an undisturbed run."""
    dense, table = expected(count, has_rows)
    victim = shards - 1
    _, errors, acts = run(on_ranks, shards, count, slack, has_rows, victim, 0)
    assert not any(errors)
    rng = random.Random(f"{slack} {shards} {count} {has_rows}")
    for fatal in sorted(rng.sample(range(1, acts + 1), 8)):
        held, errors, _ = run(on_ranks, shards, count, slack, has_rows, victim, fatal)
        others = [error for error in errors if error is not None and not isinstance(error, KilledError)]
        assert not others, (fatal, acts, others)
        for found in held:
            assert np.array_equal(found[0], dense), (fatal, acts)
            assert np.array_equal(found[1], table), (fatal, acts)


@pytest.mark.parametrize("kind", ["int8", "topk"])
def test_coded_gradients_are_sent_again_as_they_were(on_ranks, kind):
    """What a letter has left out comes with the next one, once."""
    undisturbed, _, acts = run(on_ranks, 2, 5000, 0, False, 1, 0, kind)
    for fatal in (acts // 3, acts // 2, acts // 2 + 1, acts // 2 + 2):
        held, errors, _ = run(on_ranks, 2, 5000, 0, False, 1, fatal, kind)
        assert [error for error in errors if error is not None and not isinstance(error, KilledError)] == []
        assert np.array_equal(held[0][0], undisturbed[0][0])


def test_a_second_loss_ends_the_run(on_ranks):
    lost = []

    def body(transport):
        transport.spare([1, 2])
        buffer = np.zeros(1)
        if transport.rank == 1:
            raise KilledError
        with pytest.raises(PeerLost, match="rank 1 has failed"):
            transport.wait(transport.irecv(buffer, 1, 5))
        lost.append(transport.lost())
        if transport.rank == 2:
            transport.wait(transport.irecv(buffer, 0, 6))
            raise KilledError
        transport.isend(buffer, 2, 6)
        transport.wait(transport.irecv(buffer, 2, 5))

    _, errors = on_ranks.run(3, body)
    assert lost == [[1], [1]]
    names = [type(error).__name__ for error in errors if error is not None]
    assert sorted(names) == ["KilledError", "KilledError", "PeerLost"]
