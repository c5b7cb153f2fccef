"""What workers may read: shards under random pushes, delays and duplicates, against a plain reference."""

import random
import threading
import time

import hpcps_kernels
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcps import optim
from hpcps.comm.order import in_turn
from hpcps.config import Optimizer
from hpcps.errors import CommError, ConfigError
from hpcps.first import FirstRows
from hpcps.rows import Merger, PulledRows, Rows
from hpcps.server import sharding, turns
from hpcps.server.delay import Compensated, Scaled
from hpcps.server.messages import UNBOUNDED
from hpcps.server.remote import RemoteClient
from hpcps.server.serve import Server
from hpcps.server.store import Shard
from hpcps.server.table import Table
from hpcps.sums import Decoder, Summed

KERNELS = hpcps_kernels.load("reference")
RATE = 0.125
SGD = optim.make(Optimizer(kind="sgd", learning_rate=RATE), KERNELS)
COUNT = 5
ROWS = 6


def shard_of(workers, optimizer=SGD, tables=True, delay=None):
    stored = {"table": Table(FirstRows((ROWS, 2), 0), np.float32, optimizer, KERNELS)} if tables else {}
    decoder = Decoder(False, np.float32, KERNELS)
    return Shard(np.zeros(COUNT, np.float32), optimizer, decoder, Merger(KERNELS), in_turn(workers), 1.0, stored, delay)


def gradient(worker, step):
    """Whole numbers: their sums are exact in any order."""
    rng = np.random.default_rng([worker, step])
    keys = rng.permutation(ROWS)[: rng.integers(0, ROWS)]
    values = rng.integers(-8, 9, (len(keys), 2)).astype(np.float32)
    return Summed(rng.integers(-8, 9, COUNT).astype(np.float32), 1.0, {"table": Rows(keys, values)})


def expected(applied):
    """Parameters after these (worker, step) gradients with plain SGD, and after none."""
    dense, table = np.zeros(COUNT, np.float32), np.zeros((ROWS, 2), np.float32)
    for worker, step in applied:
        found = gradient(worker, step)
        dense -= RATE * found.dense
        keys, values = found.rows["table"]
        table[keys] -= RATE * values
    return dense, table


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 4))
def test_a_shard_holds_what_its_clocks_say(data, workers):
    shard = shard_of(workers)
    pushed, at_once, duplicates = [0] * workers, set(), 0
    for _ in range(data.draw(st.integers(0, 25))):
        worker = data.draw(st.integers(0, workers - 1))
        if pushed[worker] and data.draw(st.booleans()):  # sent again
            again = data.draw(st.integers(1, pushed[worker]))
            assert not shard.push(worker, again, gradient(worker, again), data.draw(st.booleans()))
            duplicates += 1
            continue
        pushed[worker] += 1
        alone = data.draw(st.booleans())
        if alone:
            at_once.add((worker, pushed[worker]))
        shard.push(worker, pushed[worker], gradient(worker, pushed[worker]), alone)
        complete = min(pushed)
        applied = [
            (w, s) for w in range(workers) for s in range(1, pushed[w] + 1) if s <= complete or (w, s) in at_once
        ]
        dense, table = expected(applied)
        assert np.array_equal(shard.params, dense)
        assert np.array_equal(shard.pull(worker, {"table": np.arange(ROWS)})[0], table)
        for w in range(workers):
            assert shard.clocks[w] == next(s for s in range(30) if (w, s + 1) not in applied)
        for step, slack in ((3, 0), (3, 2), (9, UNBOUNDED)):
            assert shard.contains(step, slack) == (slack == UNBOUNDED or min(shard.clocks) >= step - slack)
    assert shard.duplicates == duplicates
    assert shard.is_settled == (
        len(set(pushed)) == 1
        or all((w, s) in at_once for w in range(workers) for s in range(min(pushed) + 1, pushed[w] + 1))
    )


def test_steps_added_up_count_as_one_update_and_those_at_once_as_many():
    shard = shard_of(3)
    for worker in range(3):
        shard.push(worker, 1, gradient(worker, 1))
    assert shard.updates == 1
    for worker in range(3):
        shard.pull(worker, {})
    for worker in range(3):
        shard.push(worker, 2, gradient(worker, 2), at_once=True)
    assert shard.updates == 4
    assert shard.staleness == {0: 4, 1: 1, 2: 1}  # the third of the last saw neither of the two before


def test_exact_sums_cannot_be_applied_at_once():
    shard = Shard(np.zeros(2, np.float32), SGD, Decoder(True, np.float32, KERNELS), Merger(KERNELS), in_turn(2), 1.0)
    with pytest.raises(CommError, match="worker 1 pushed step 1 to be applied at once in a reproducible run"):
        shard.push(1, 1, Summed(np.ones(2, np.float32), 1.0), at_once=True)


def serve_and_work(on_ranks, workers, shards, work, colocated=False, make_turns=lambda number: None, optimizer=SGD):
    """Runs ``work(client, worker, dense, rows)`` on each worker; what it returns, and the shards' counts."""
    roles = sharding.roles(workers + (0 if colocated else shards), shards, colocated)
    slices = sharding.shard_slices(COUNT, roles.servers)

    def body(transport):
        decoder = Decoder(False, np.float32, KERNELS)
        number = transport.rank if colocated else transport.rank - workers
        server = None
        if number >= 0:
            table = Table(FirstRows((ROWS, 2), 0), np.float32, optimizer, KERNELS)
            own = np.zeros(slices[number].stop - slices[number].start, np.float32)
            parts = decoder, Merger(KERNELS), in_turn(workers), 1.0, {"table": table}
            shard = Shard(own, optimizer, *parts)
            others = list(range(workers)), decoder, [1] * workers, make_turns(number)
            server = Server(transport, shard, number, *others)
            if not colocated:
                return server.run()
        dense, rows = np.zeros(COUNT, np.float32), PulledRows({"table": 2}, np.float32, KERNELS)
        ranks = [roles.server_rank(shard) for shard in range(roles.servers)]
        client = RemoteClient(transport, dense, rows, slices, ranks, transport.rank, decoder, server)
        found = work(client, transport.rank, dense, rows)
        return found, client.finish()

    return on_ranks(roles.workers + (0 if colocated else shards), body)[:workers]


def everything(client, dense, rows):
    """All parameters, flat."""
    keys = np.arange(ROWS)
    client.fetch({"table": keys})
    client.meet()
    return np.concatenate([dense, rows.rows("table", keys).reshape(-1)])


@pytest.mark.parametrize("slack", [0, 1, 3, UNBOUNDED])
@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("colocated", [False, True])
def test_no_worker_reads_older_parameters_than_it_may(on_ranks, slack, shards, colocated):
    """Every worker adds a number of its own, so that what it reads tells how many steps of each worker are in it."""
    workers, steps, base = 3, 8, 16.0
    known = [0] * workers  # steps that have been pushed; only rises
    seen_behind = [0] * workers

    def work(client, worker, dense, rows):
        rng, every = random.Random(worker), np.arange(ROWS)
        for step in range(1, steps + 1):
            time.sleep(rng.choice([0, 0, 0.003]) * (1 + worker))
            known[worker] = step
            one = -np.full(COUNT, base**worker / RATE, np.float32)
            own = {"table": Rows(every, np.full((ROWS, 2), -(base**worker) / RATE, np.float32))}
            client.push(step, Summed(one, 1.0, own), slack)
            client.pull(step, {"table": every}, slack)
            for number in {*dense.tolist(), *rows.rows("table", every).reshape(-1).tolist()}:
                counts = [int(number // base**w) % int(base) for w in range(workers)]
                assert counts[worker] == step  # its own are always there
                for other in range(workers):
                    assert counts[other] <= known[other]
                    seen_behind[worker] = max(seen_behind[worker], step - counts[other])
                    if slack != UNBOUNDED:
                        assert counts[other] >= step - slack
                    if slack == 0:
                        assert counts[other] == step
        client.pull(steps, None, slack)  # all steps of all workers
        return everything(client, dense, rows)

    found = serve_and_work(on_ranks, workers, shards, work, colocated)
    whole = float(sum(steps * base**worker for worker in range(workers)))
    for params, counts in found:
        assert (params == whole).all()
        assert len(counts) == (workers if colocated else shards)
        for count in counts:
            assert count.updates == (steps if slack == 0 else steps * workers)
            assert sum(count.staleness.values()) == steps * workers
            assert set(count.staleness) == {0} if slack == 0 else max(count.staleness) <= 2 * steps * workers
    if slack == 0:
        assert seen_behind == [0] * workers


def test_staleness_may_change_on_the_way(on_ranks):
    def work(client, worker, dense, rows):
        for step in range(1, 13):
            slack = (0, 2, UNBOUNDED)[step // 2 % 3]
            client.push(step, gradient(worker, step), slack)
            client.pull(step, {"table": np.arange(2)}, slack)
        client.pull(12, None, 0)
        return everything(client, dense, rows)

    for params, _ in serve_and_work(on_ranks, 3, 2, work):
        dense, table = expected([(worker, step) for worker in range(3) for step in range(1, 13)])
        assert np.array_equal(params, np.concatenate([dense, table.reshape(-1)]))


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("colocated", [False, True])
def test_a_recorded_run_is_repeated_to_the_last_bit(on_ranks, tmp_path, shards, colocated):
    adagrad = optim.make(Optimizer(kind="adagrad", learning_rate=0.1), KERNELS)

    def work(client, worker, dense, rows):
        rng, keys = np.random.default_rng(worker), np.arange(3)
        for step in range(1, 16):
            time.sleep(random.random() * 0.002)
            gradient = rng.normal(size=COUNT).astype(np.float32) + dense
            values = rows.rows("table", keys) + 1 if step > 1 else np.ones((3, 2), np.float32)
            client.push(step, Summed(gradient, 1.0, {"table": Rows(keys, values)}), UNBOUNDED)
            client.pull(step, {"table": keys}, UNBOUNDED)
        client.pull(15, None, UNBOUNDED)
        return everything(client, dense, rows)

    def recorded(number):
        return turns.Recorded(lambda content: (tmp_path / turns.file_name(number)).write_bytes(content))

    first = serve_and_work(on_ranks, 3, shards, work, colocated, recorded, adagrad)
    for _ in range(2):
        again = serve_and_work(
            on_ranks, 3, shards, work, colocated, lambda number: turns.load(tmp_path, number, 3), adagrad
        )
        assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))


def test_a_record_of_something_else_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"server\.replay: .*order-0\.bin: no record"):
        turns.load(tmp_path, 0, 2)
    path = tmp_path / turns.file_name(1)
    for content in (b"", b"x", turns.MAGIC, turns.MAGIC + b"\0\0\1", turns.MAGIC + b"\0\0\1\0\2\0"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="not the record of a shard with 2 workers"):
            turns.load(tmp_path, 1, 2)


def test_a_record_that_ends_too_early_is_an_error():
    replayed = turns.Replayed(np.array([1, 0], "<u2"))
    for worker in (1, 0):
        assert replayed.next() == worker
        replayed.taken(worker)
    with pytest.raises(CommError, match="ends before the run does"):
        replayed.next()


def test_old_gradients_are_scaled_by_their_age():
    shard = shard_of(3, delay=Scaled())
    for worker in range(3):
        shard.pull(worker, {})
    found = [gradient(worker, 1) for worker in range(3)]
    for worker in range(3):
        shard.push(worker, 1, found[worker], at_once=True)
    wanted = -RATE * sum(one.dense / np.float32(age + 1) for age, one in enumerate(found))
    assert np.allclose(shard.params, wanted)
    rows = np.zeros((ROWS, 2), np.float32)
    for age, one in enumerate(found):
        rows[one.rows["table"].keys] -= RATE * one.rows["table"].values / (age + 1)
    assert np.allclose(shard.tables["table"].pull(np.arange(ROWS)), rows)


def test_old_gradients_are_compensated_for_what_has_changed():
    """g + c g g (v - w), with g the mean gradient."""
    shard = shard_of(2, tables=False, delay=Compensated(2, 0.5))
    for worker in range(2):
        shard.pull(worker, {})
    first, second = (np.arange(1, COUNT + 1, dtype=np.float32) * sign for sign in (1, -2))
    shard.push(0, 1, Summed(first, 1.0), at_once=True)
    change = shard.params.copy()  # worker 1 has not seen it
    shard.push(1, 1, Summed(second, 1.0), at_once=True)
    assert np.allclose(shard.params, change - RATE * (second + 0.5 * second * second * change))
    assert np.array_equal(second, np.arange(1, COUNT + 1) * -2)


def test_a_worker_that_is_slow_does_not_keep_others_of_an_asynchronous_run(on_ranks):
    may_go_on = threading.Event()

    def work(client, worker, dense, rows):
        if worker == 0:
            assert may_go_on.wait(20)
        for step in range(1, 6):
            client.push(step, gradient(worker, step), UNBOUNDED)
            client.pull(step, {"table": np.arange(2)}, UNBOUNDED)
        if worker == 1:
            may_go_on.set()  # all of this worker's steps are done, none of the other's

    serve_and_work(on_ranks, 2, 1, work)
