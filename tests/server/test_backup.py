"""Shards that go on without late workers, against a plain reference; and the workers that are late."""

import random
import threading
import time

import hpcps_kernels
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcps import optim
from hpcps.comm import codes
from hpcps.comm.order import in_turn
from hpcps.config import Optimizer
from hpcps.errors import CommError, CommTimeout
from hpcps.first import FirstRows
from hpcps.rows import Merger, PulledRows, Rows
from hpcps.server import sharding
from hpcps.server.backup import BackupShard
from hpcps.server.filters import Encoder
from hpcps.server.remote import RemoteClient
from hpcps.server.serve import Server
from hpcps.server.table import Table
from hpcps.sums import Decoder, Summed

KERNELS = hpcps_kernels.load("reference")
RATE, COUNT, ROWS = 0.125, 5, 6
SGD = optim.make(Optimizer(kind="sgd", learning_rate=RATE), KERNELS)
DECODER = Decoder(False, np.float32, KERNELS)


def shard_of(samples, backup, count=COUNT, scale=1.0):
    """``scale`` times the sum of all workers' gradients would be the mean."""
    table = Table(FirstRows((ROWS, 2), 0), np.float32, SGD, KERNELS)
    rest = DECODER, Merger(KERNELS), in_turn(len(samples)), scale, {"table": table}
    return BackupShard(np.zeros(count, np.float32), SGD, *rest, samples=samples, backup=backup)


def gradient(worker, step):
    """A sum over samples, of the dense parameters and of some rows."""
    rng = np.random.default_rng([worker, step])
    keys = rng.permutation(ROWS)[: rng.integers(0, ROWS)]
    rows = Rows(keys, rng.normal(size=(len(keys), 2)).astype(np.float32))
    return Summed(rng.normal(size=COUNT).astype(np.float32), 1.0, {"table": rows})


def expected(applied, samples):
    """Parameters after these steps of plain SGD; of each step the workers whose gradients are averaged."""
    dense, table = np.zeros(COUNT), np.zeros((ROWS, 2))
    for step, workers in enumerate(applied, 1):
        mean = RATE / sum(samples[worker] for worker in workers)
        for worker in workers:
            found = gradient(worker, step)
            dense -= mean * found.dense
            table[found.rows["table"].keys] -= mean * found.rows["table"].values
    return dense, table


@settings(max_examples=150, deadline=None)
@given(st.data(), st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_a_shard_is_what_the_first_gradients_of_each_step_make(data, samples):
    workers = len(samples)
    backup = data.draw(st.integers(1, workers - 1))
    shard = shard_of(samples, backup, scale=1 / sum(samples))
    applied, waiting = [], []
    last, pushes, dropped, duplicates = [0] * workers, [0] * workers, [0] * workers, 0
    for _ in range(data.draw(st.integers(0, 40))):
        worker = data.draw(st.integers(0, workers - 1))
        if last[worker] and data.draw(st.integers(0, 3)) == 0:  # sent again
            shard.push(worker, last[worker], gradient(worker, last[worker]))
            duplicates += 1
        elif last[worker] <= len(applied):
            step = data.draw(st.integers(last[worker] + 1, len(applied) + 1))  # late, unless it is the current one
            is_current = step == len(applied) + 1
            last[worker], pushes[worker] = step, pushes[worker] + 1
            is_needed = shard.push(worker, step, gradient(worker, step))
            assert shard.take_late(worker) == (not is_current)
            assert not shard.take_late(worker)
            dropped[worker] += not is_current
            waiting += [worker] if is_current else []
            assert is_needed == (is_current and len(waiting) < workers - backup)
            if len(waiting) == workers - backup:
                applied.append(waiting)
                waiting = []
        dense, table = expected(applied, samples)
        np.testing.assert_allclose(shard.params, dense, atol=1e-5)
        np.testing.assert_allclose(shard.pull(worker, {"table": np.arange(ROWS)})[0], table, atol=1e-5)
        steps = len(applied)
        assert shard.updates == shard.steps == steps
        assert shard.contains(steps, 0)
        assert not shard.contains(steps + 1, 0)
        assert shard.ahead(0) == steps
        assert shard.is_settled == (not waiting)
        assert shard.lacks(range(workers)) == (steps + 1, [w for w in range(workers) if w not in waiting])
    assert shard.duplicates == duplicates
    assert shard.staleness[0] == sum(map(len, applied))
    assert shard.late[0] == dropped
    if not waiting:  # as at the end of a run
        assert shard.late[1] == [len(applied) - count for count in pushes]


def test_the_sum_does_not_depend_on_who_of_the_first_came_first():
    found = set()
    for turns in ([0, 1, 3], [3, 1, 0], [1, 3, 0]):
        shard = shard_of([1, 1, 1, 1], 1)
        for worker in turns:
            shard.push(worker, 1, gradient(worker, 1))
        found.add(shard.params.tobytes())
    assert len(found) == 1


def test_pushes_that_no_worker_may_make_are_refused():
    shard = shard_of([1, 1, 1], 1)
    with pytest.raises(CommError, match="worker 1 pushed step 2 to a shard that has had step 0"):
        shard.push(1, 2, gradient(1, 2))
    with pytest.raises(CommError, match="worker 1 pushed step 1 to be applied at once to a shard with backup workers"):
        shard.push(1, 1, gradient(1, 1), at_once=True)
    with pytest.raises(CommError, match="worker 1 pushed 2 pieces, not 1"):
        shard.push(1, 1, Summed(np.zeros((2, COUNT), np.float32), 1.0))


def serve_and_work(on_ranks, workers, shards, backup, work, near=False, timeout_s=20, count=COUNT):
    """Runs ``work(client, worker, dense, rows, gradient)`` on each worker; what it returns, and the shards' counts.
    ``near``: dense gradients do not travel."""
    slices = sharding.shard_slices(count, shards)

    def body(transport):
        memory, number = transport.memory if near else None, transport.rank - workers
        pushed = transport.empty(count, np.float32)
        if number >= 0:
            shard = shard_of([1] * workers, backup, slices[number].stop - slices[number].start, 1 / workers)
            rest = list(range(workers)), DECODER, [1] * workers
            return Server(transport, shard, number, *rest, memory=memory, letters=memory).run()
        dense, rows = np.zeros(count, np.float32), PulledRows({"table": 2}, np.float32, KERNELS)
        servers = list(range(workers, workers + shards))
        rest = servers, transport.rank, DECODER
        client = RemoteClient(transport, dense, rows, slices, *rest, memory=memory, letters=memory)
        found = work(client, transport.rank, dense, rows, pushed)
        return found, client.finish()

    return on_ranks(workers + shards, body, timeout_s)[:workers]


BASE, STEPS, WORKERS = 16, 12, 4
EVERY = np.arange(ROWS)


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("count", [COUNT, 5000])
def test_every_number_holds_as_many_gradients_as_steps_ask_for(on_ranks, shards, near, count):
    """Two of four workers are enough. Each adds a number of its own, so that a parameter tells whose gradients it
    holds: of each step two, whoever they were, twice as much of each as if it were all four. What has been answered is
    not looked at any more: it is written over at once."""
    backup, seen_late = 2, [0]

    def counts_of(number):
        return [round(number / 2) // BASE**w % BASE for w in range(WORKERS)]

    def work(client, worker, dense, rows, pushed):
        rng, step = random.Random(worker), 1
        while step <= STEPS:
            time.sleep(rng.choice([0, 0, 0.002]) * (1 + 3 * worker))
            one = np.float32(-(BASE**worker) * WORKERS / RATE)
            pushed.fill(one)
            own = {"table": Rows(EVERY, np.full((ROWS, 2), one))}
            client.push(step, Summed(pushed, 1.0, own))
            reached = client.pull(step, {"table": EVERY})
            pushed.fill(np.nan)
            own["table"].values.fill(np.nan)
            assert reached >= step
            if reached > step:
                seen_late[0] += 1
                client.go_on(reached, {"table": EVERY} if step % 2 else None)
            for number in {*dense.tolist(), *(rows.rows("table", EVERY).reshape(-1).tolist() if step % 2 else ())}:
                found = counts_of(number)
                assert sum(found) % (WORKERS - backup) == 0
                assert sum(found) // (WORKERS - backup) >= reached
                assert found[worker] <= step
            step = reached + 1
        client.fetch({"table": EVERY})
        return np.concatenate([dense, rows.rows("table", EVERY).reshape(-1)])

    found = serve_and_work(on_ranks, WORKERS, shards, backup, work, near, count=count)
    assert seen_late[0]
    for params, _ in found[1:]:
        assert np.array_equal(params, found[0][0])
    counts = found[0][1]
    for one in counts:
        assert one.updates == STEPS
        assert one.staleness == {0: (WORKERS - backup) * STEPS}
        assert sum(one.dropped) + sum(one.skipped) == backup * STEPS
        assert one.skipped == counts[0].skipped
    for number, where in enumerate(sharding.shard_slices(count, shards)):
        (value,) = set(found[0][0][where].tolist())
        added = [STEPS - d - s for d, s in zip(counts[number].dropped, counts[number].skipped, strict=True)]
        assert counts_of(value) == added


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_worker_that_is_late_goes_on_with_the_newest_step(on_ranks, shards, near):
    may_go_on = threading.Event()

    def work(client, worker, dense, rows, pushed):
        if worker == 0:
            assert may_go_on.wait(20)
            pushed.fill(1e9)  # of step 1, which the others have long done
            client.push(1, Summed(pushed, 1.0, {"table": Rows(EVERY, np.full((ROWS, 2), 1e9, np.float32))}))
            assert client.pull(1, {"table": EVERY}) == 6
            client.go_on(6, None)
            traffic = client.traffic()
            assert (traffic.dropped, traffic.skipped) == (shards, 5)
        for step in range(1, 7) if worker else ():
            pushed.fill(step)
            client.push(step, Summed(pushed, 1.0, {"table": Rows(EVERY, np.full((ROWS, 2), step, np.float32))}))
            assert client.pull(step, {"table": EVERY[:3]}) == step
        if worker == 1:
            may_go_on.set()
        return np.concatenate([dense, rows.rows("table", EVERY[:3]).reshape(-1)])

    for params, counts in serve_and_work(on_ranks, 3, shards, 1, work, near):
        assert np.array_equal(params, np.full(COUNT + 6, -RATE * 21, np.float32))  # means of equal gradients
        assert [one.dropped for one in counts] == [[1, 0, 0]] * shards
        assert [one.skipped for one in counts] == [[5, 0, 0]] * shards


def test_a_step_that_too_few_workers_take_is_an_error_that_names_the_others(on_ranks):
    has_failed = threading.Event()

    def work(client, worker, dense, rows, pushed):
        if worker < 2:  # both are gone, and the third one is not enough
            assert has_failed.wait(20)
            return
        try:
            client.push(1, gradient(2, 1))
            client.pull(1, {})
        finally:
            has_failed.set()

    with pytest.raises((CommTimeout, CommError)) as caught:
        serve_and_work(on_ranks, 3, 1, 1, work, timeout_s=0.5)
    told = [str(caught.value), str(caught.value.__cause__)]
    assert any("shard 0 lacks step 1 of rank(s) 0, 1" in one or "rank 2 waited 0.5 s" in one for one in told)


@pytest.mark.parametrize("kind", ["bf16", "int8", "topk"])
def test_what_a_dropped_message_held_of_earlier_gradients_is_kept(kind):
    rng = np.random.default_rng(0)
    code = codes.make(kind, 64, 0.2, np.float32, KERNELS)
    encoder = Encoder(code, 300, np.float32)
    encoder.encode(rng.normal(size=300).astype(np.float32))
    before, x = encoder.residual.copy(), rng.normal(size=300).astype(np.float32)
    assert before.any()
    encoder.encode(x)
    assert not np.allclose(encoder.residual, before, atol=1e-3)
    encoder.take_back(x)
    np.testing.assert_allclose(encoder.residual, before, atol=1e-6)
