"""Tables that workers look at where they lie."""

import gc

import hpcps_kernels
import numpy as np
import pytest
from hpcps_kernels.row_index import RowIndex

from hpcps import optim
from hpcps.comm.local import LocalWorld
from hpcps.comm.memory import ThreadMemory
from hpcps.comm.order import in_turn
from hpcps.config import Optimizer
from hpcps.errors import CommError
from hpcps.first import FirstRows
from hpcps.rows import Merger, Picked, PulledRows, Rows
from hpcps.server.remote import RemoteClient
from hpcps.server.serve import Server
from hpcps.server.shown import Shown, Viewer, pack
from hpcps.server.store import Shard
from hpcps.server.table import Table
from hpcps.sums import Decoder, Summed

KERNELS = hpcps_kernels.load("cpu")
ADAGRAD = optim.make(Optimizer(kind="adagrad", learning_rate=0.5), KERNELS)
FIRSTS = {"factors": FirstRows((20_000, 3), 5, 0.1), "weights": FirstRows((20_000, 1), 6, 0.1)}
NOTHING = np.empty(0, np.float32)
STEPS = 9


def shard_on(transport, workers, number, shows, evict_after=0, copies=False):
    """Serve a shard of both tables until the workers have finished."""
    decoder, memory = Decoder(False, np.float32, KERNELS), transport.memory
    more = {"tracks_use": evict_after > 0, "capacity": 8, "memory": memory if shows else None}
    tables = {name: Table(first, np.float32, ADAGRAD, KERNELS, **more) for name, first in FIRSTS.items()}
    rest = ADAGRAD, decoder, Merger(KERNELS), in_turn(workers), 1.0, tables
    shard = Shard(NOTHING, *rest, evict_after=evict_after)
    ranks = list(range(workers))
    Server(transport, shard, number, ranks, decoder, [1] * workers, copies=copies, letters=memory).run()


def client_on(transport, workers, shards):
    """A worker's client, and where its rows are."""
    decoder, memory = Decoder(False, np.float32, KERNELS), transport.memory
    rows = PulledRows({name: first.width for name, first in FIRSTS.items()}, np.float32, KERNELS)
    servers, viewer = list(range(workers, workers + shards)), Viewer(FIRSTS, np.float32, KERNELS, memory)
    rest = [slice(0, 0)] * shards, servers, transport.rank, decoder
    client = RemoteClient(transport, NOTHING, rows, *rest, letters=memory, workers=workers, viewer=viewer)
    return client, rows


def drawn(step, rank, count):
    """Keys of both tables."""
    rng = np.random.default_rng(100 * step + rank)
    return {name: np.sort(rng.choice(20_000, count, replace=False)) for name in FIRSTS}


def gradient(step, rank, keys):
    """Sums of its values are exact."""
    rng = np.random.default_rng(1000 * step + rank)
    rows = {}
    for name, own in keys.items():
        rows[name] = Rows(own, rng.integers(-8, 8, (len(own), FIRSTS[name].width)).astype(np.float32))
    return Summed(NOTHING, 1.0, rows)


def run(transport, workers, shards, shows, evict_after=0):
    """One rank's part; what a worker saw in all steps."""
    if transport.rank >= workers:
        return shard_on(transport, workers, transport.rank - workers, shows, evict_after)
    client, rows = client_on(transport, workers, shards)
    seen = []
    for step in range(1, STEPS + 1):
        keys = drawn(step, transport.rank, 30 << step)
        is_asked = step != 4  # else keys are pushed that no pull has asked for
        client.pull(step - 1, keys if is_asked else None)
        if is_asked:
            seen += [rows.rows(name, own).copy() for name, own in keys.items()]
        client.push(step, gradient(step, transport.rank, keys))
    every = {name: np.arange(20_000) for name in FIRSTS}
    client.pull(STEPS, None)
    client.fetch(every)
    seen += [rows.rows(name, own).copy() for name, own in every.items()]
    client.finish()
    return np.concatenate([one.reshape(-1) for one in seen])


@pytest.mark.parametrize("evict_after", [0, 3])
@pytest.mark.parametrize(("workers", "shards"), [(1, 1), (1, 2), (2, 1), (3, 2)])
def test_rows_that_are_looked_at_are_those_that_letters_bring(on_ranks, monkeypatch, workers, shards, evict_after):
    pull, asked = Table.pull, []

    def noted(self, keys, *rest):
        asked.append(len(keys))
        return pull(self, keys, *rest)

    monkeypatch.setattr(Table, "pull", noted)

    def runs(shows):
        found = on_ranks(workers + shards, lambda transport: run(transport, workers, shards, shows, evict_after))
        return found[:workers]

    expected = runs(False)
    asked.clear()
    for own, others in zip(runs(True), expected, strict=True):
        assert np.array_equal(own, others)
    assert (
        sum(asked) == workers * len(FIRSTS) * 60
    )  # the first pull of each worker, to which shards told where rows are


def test_nothing_is_asked_for_where_parameters_are_fresh(on_ranks):
    def body(transport):
        if transport.rank == 1:
            return shard_on(transport, 1, 0, True)
        client, rows = client_on(transport, 1, 1)
        keys = drawn(1, 0, 5000)
        client.push(1, gradient(1, 0, keys))
        client.pull(1, keys)
        asked, before = client.traffic().requests, rows.rows("factors", keys["factors"]).copy()
        others = drawn(2, 0, 5000)
        client.fetch(others)
        client.pull(1, keys)
        assert client.traffic().requests == asked
        assert np.array_equal(rows.rows("factors", keys["factors"]), before)
        client.push(2, gradient(2, 0, keys))
        client.pull(2, keys)
        assert client.traffic().requests == asked + 1  # the push asks for fresh parameters, too
        assert not np.array_equal(rows.rows("factors", keys["factors"]), before)
        client.finish()

    on_ranks(2, body)


@pytest.mark.parametrize("is_picked", [False, True])
def test_rows_that_a_worker_has_found_are_not_looked_up_by_the_shard(on_ranks, monkeypatch, is_picked):
    insert, looked = RowIndex.insert, []

    def noted(self, keys):
        looked.append(len(keys))
        return insert(self, keys)

    monkeypatch.setattr(RowIndex, "insert", noted)

    def body(transport):
        if transport.rank == 1:
            return shard_on(transport, 1, 0, True)
        client, rows = client_on(transport, 1, 1)
        known, mixed = drawn(1, 0, 400), drawn(2, 0, 400)
        client.push(1, gradient(1, 0, known))
        client.pull(1, known)  # by letters: the worker does not know yet where rows are
        looked.clear()
        for step, keys in ((2, known), (3, mixed)):
            client.fetch(keys)
            before = rows.rows("factors", keys["factors"]).copy()
            pushed = gradient(step, 0, keys)
            if is_picked:
                are_in = {name: np.arange(len(own)) % 3 > 0 for name, own in keys.items()}
                part = {
                    name: Rows(own.keys[are_in[name]], own.values[are_in[name]]) for name, own in pushed.rows.items()
                }
                picked = {name: Picked(own, are_in[name]) for name, own in keys.items()}
                pushed = pushed._replace(rows=part, picked=picked)
            client.push(step, pushed)
            client.pull(step, keys)
            changed = (rows.rows("factors", keys["factors"]) != before).any(axis=1)
            values = gradient(step, 0, keys).rows["factors"].values.any(axis=1)
            assert np.array_equal(changed, values & are_in["factors"] if is_picked else values)
        client.finish()

    on_ranks(2, body)
    known, mixed = drawn(1, 0, 400), drawn(2, 0, 400)
    new = [~np.isin(mixed[name], known[name]) for name in FIRSTS]
    parts = [own[np.arange(400) % 3 > 0] if is_picked else own for own in new]
    assert looked == [part.sum() for part in parts]


def test_slots_of_another_layout_are_not_used(on_ranks):
    """The rows that one worker has found may have moved when its push is applied."""

    def body(transport):
        if transport.rank == 1:
            return shard_on(transport, 1, 0, True, evict_after=2)
        client, rows = client_on(transport, 1, 1)
        keys = [drawn(step, 0, 300) for step in range(6)]
        client.push(1, gradient(1, 0, keys[1]))
        client.pull(1, keys[2])
        client.push(2, gradient(2, 0, keys[2]))
        client.pull(2, keys[2])
        before = rows.rows("factors", keys[2]["factors"]).copy()
        client._looks._views[0].layout -= 1
        client._looks._slots[0] = [np.zeros(300, np.int64)] * 2
        pushed = gradient(3, 0, keys[2])
        client.push(3, pushed)
        client.pull(3, keys[2])
        changed = (rows.rows("factors", keys[2]["factors"]) != before).any(axis=1)
        assert np.array_equal(changed, pushed.rows["factors"].values.any(axis=1))
        client.finish()

    on_ranks(2, body)


@pytest.mark.parametrize("views", [0, 1, 3])
def test_memory_that_a_worker_cannot_map_is_done_without(on_ranks, monkeypatch, views):
    seen, asked, view = run_alone(on_ranks, True), [], Viewer.view

    def refuse(self, *told):
        asked.append(told)
        if len(asked) > views:
            raise CommError("none left")
        return view(self, *told)

    monkeypatch.setattr(Viewer, "view", refuse)
    assert np.array_equal(run_alone(on_ranks, True), seen)
    assert len(asked) == views + 1


@pytest.mark.parametrize("most", [0, 1 << 14, 1 << 30])
def test_memory_that_a_shard_cannot_reserve_is_done_without(on_ranks, monkeypatch, most):
    """From the start, for an index that has grown, or for rows."""
    seen, real = run_alone(on_ranks, True), ThreadMemory.reserve

    def refuse(self, size_bytes):
        if size_bytes > most:
            raise CommError("none left")
        return real(self, size_bytes)

    monkeypatch.setattr(ThreadMemory, "reserve", refuse)
    assert np.array_equal(run_alone(on_ranks, True), seen)


def run_alone(on_ranks, shows):
    return on_ranks(2, lambda transport: run(transport, 1, 1, shows))[0]


def test_a_push_to_be_applied_at_once_is_refused_where_others_may_look(on_ranks):
    def body(transport):
        if transport.rank == 1:
            return shard_on(transport, 1, 0, True)
        client, _ = client_on(transport, 1, 1)
        client.push(1, gradient(1, 0, drawn(1, 0, 10)))
        client.pull(1, drawn(1, 0, 10))
        client.push(2, gradient(2, 0, drawn(1, 0, 10)), slack=1)
        return client.pull(2, None, 1)

    _, errors = on_ranks.run(2, body)
    assert any("at once" in str(error) for error in errors if isinstance(error, CommError))


def test_tables_are_not_shown_where_rows_may_change_meanwhile(on_ranks):
    def body(transport):
        if transport.rank == 1:
            return shard_on(transport, 1, 0, True, copies=True)
        client, _ = client_on(transport, 1, 1)
        for step in range(1, 4):
            client.push(step, gradient(step, 0, drawn(step, 0, 3000)))
            client.pull(step, drawn(step, 0, 3000))
        assert not client._looks.can(0)
        client.finish()

    on_ranks(2, body)


def test_what_is_told_of_tables_is_checked():
    memory = LocalWorld(1).transports()[0].memory
    table = Table(FIRSTS["weights"], np.float32, ADAGRAD, KERNELS, memory=memory)
    viewer = Viewer({"weights": FIRSTS["weights"]}, np.float32, KERNELS, memory)
    shown = table.shown()
    keys = np.arange(10)
    table.push(keys, np.ones((10, 1), np.float32), 1.0, 1)
    out = np.empty((12, 1), np.float32)
    view = viewer.view(3, pack([shown]))
    assert view.layout == 3
    assert view.read("weights", np.arange(12), out).tolist() == [*range(10), -1, -1]
    assert np.array_equal(out, table.pull(np.arange(12)))
    with pytest.raises(CommError, match="199 bytes came that are to tell of 1 tables"):
        viewer.view(3, pack([shown])[:199])
    with pytest.raises(CommError, match="rows of 0 numbers cannot be those of weights, 1 wide"):
        viewer.view(3, pack([Shown(shown.cells, shown.rows, 0)]))


@pytest.mark.parametrize("fails", ["nothing", "map", "reserve"])
def test_ranks_that_work_and_serve_are_served_until_they_have_their_rows(on_ranks, monkeypatch, fails):
    """After a pull they may meet in a collective, in which nobody serves."""
    view, reserve, asked = Viewer.view, ThreadMemory.reserve, []

    def refuse_to_map(self, *told):
        asked.append(told)
        if len(asked) > 3:
            raise CommError("none left")
        return view(self, *told)

    def refuse(self, size_bytes):
        if 1 << 13 < size_bytes < 1 << 30:
            raise CommError("none left")
        return reserve(self, size_bytes)

    if fails == "map":
        monkeypatch.setattr(Viewer, "view", refuse_to_map)
    if fails == "reserve":
        monkeypatch.setattr(ThreadMemory, "reserve", refuse)

    def body(transport):
        decoder, memory = Decoder(False, np.float32, KERNELS), transport.memory
        tables = {name: Table(first, np.float32, ADAGRAD, KERNELS, memory=memory) for name, first in FIRSTS.items()}
        shard = Shard(NOTHING, ADAGRAD, decoder, Merger(KERNELS), in_turn(2), 1.0, tables)
        server = Server(transport, shard, transport.rank, [0, 1], decoder, [1, 1], letters=memory)
        rows = PulledRows({name: first.width for name, first in FIRSTS.items()}, np.float32, KERNELS)
        rest, viewer = (
            ([slice(0, 0)] * 2, [0, 1], transport.rank, decoder, server),
            Viewer(FIRSTS, np.float32, KERNELS, memory),
        )
        client = RemoteClient(transport, NOTHING, rows, *rest, letters=memory, workers=2, viewer=viewer)
        seen = []
        for step in range(1, STEPS + 1):
            keys = drawn(step, transport.rank, 30 << step)
            client.push(step, gradient(step, transport.rank, keys))
            client.pull(step, keys)
            seen += [rows.rows(name, own).sum() for name, own in keys.items()]
            transport.barrier()
        client.finish()
        return seen

    found = on_ranks(2, body)
    monkeypatch.undo()
    assert on_ranks(2, body) == found


def test_memory_of_threads_is_there_as_long_as_somebody_looks(on_ranks):
    memory = LocalWorld(1).transports()[0].memory
    table = Table(FIRSTS["weights"], np.float32, ADAGRAD, KERNELS, memory=memory)
    keys, shown = np.arange(10), table.shown()
    table.push(keys, np.ones((10, 1), np.float32), 1.0, 1)
    expected, out = table.pull(keys), np.empty((10, 1), np.float32)
    viewer = Viewer({"weights": FIRSTS["weights"]}, np.float32, KERNELS, memory)
    view = viewer.view(1, pack([shown]))
    del table
    gc.collect()
    assert view.read("weights", keys, out).tolist() == keys.tolist()
    assert np.array_equal(out, expected)
    del view
    gc.collect()
    with pytest.raises(CommError, match="of another thread are not there any more"):
        viewer.view(1, pack([shown]))
