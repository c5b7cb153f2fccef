"""State in pieces: cut up in any way, and put together in any other; and the agreement on when it is kept."""

import io
import signal
import struct
from itertools import pairwise

import hpcps_kernels
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcps import optim
from hpcps.checkpoint import When
from hpcps.comm.order import in_turn
from hpcps.comm.topology import chunk_bounds
from hpcps.config import Optimizer
from hpcps.errors import CheckpointError
from hpcps.first import FirstRows
from hpcps.rows import Merger
from hpcps.server.store import Shard
from hpcps.server.table import Table, WholeTable
from hpcps.snapshot import BLOCK_BYTES, Flat, Pieces, Position, Snapshot, in_memory
from hpcps.stopping import Stop
from hpcps.sums import Decoder
from hpcps.tensors import read_places, stored_here, write_tensors

KERNELS = hpcps_kernels.load("cpu")
SMALL = settings(max_examples=40, deadline=None)


def position(workers=1, steps=7, updates=7):
    return Position(steps, updates, workers, (0.0,), 0, {}, {})


def cut(name, array, bounds, start=0):
    return [
        Flat(name, start + low, in_memory(array[low:high]))
        for low, high in zip(bounds, [*bounds[1:], len(array)], strict=True)
    ]


@SMALL
@given(data=st.data(), count=st.integers(0, 50))
def test_a_flat_array_is_put_together_however_it_was_cut(data, count):
    whole = np.random.default_rng(count).normal(size=count)
    bounds = sorted(data.draw(st.sets(st.integers(0, count), max_size=6)) | {0})
    snapshot = Snapshot(position(), Pieces(data.draw(st.permutations(cut("x", whole, bounds)))))
    low = data.draw(st.integers(0, count))
    high = data.draw(st.integers(low, count))
    out = np.full(high - low, np.nan)
    snapshot.fill(out, "x", low)
    assert np.array_equal(out, whole[low:high])
    with pytest.raises(CheckpointError, match="x has not the elements"):
        snapshot.fill(np.empty(high - low + 1), "x", count - (high - low))


def test_long_arrays_are_read_in_blocks():
    whole = np.arange(BLOCK_BYTES // 8 * 2 + 5, dtype=np.float64)
    snapshot = Snapshot(position(), Pieces(cut("x", whole, [0, 3, 100_000])))
    out = np.empty(len(whole) - 7)
    snapshot.fill(out, "x", 4)
    assert np.array_equal(out, whole[4:-3])


@SMALL
@given(workers=st.integers(1, 5), now=st.integers(1, 5), has_sums=st.booleans(), count=st.integers(1, 20))
def test_what_was_left_out_stays_the_same_in_sum(workers, now, has_sums, count):
    rng = np.random.default_rng(count)
    own, sums = rng.integers(-9, 9, (workers, count)).astype(np.float32), rng.integers(-9, 9, count).astype(np.float32)
    flats = [Flat("residual", worker * count, in_memory(own[worker])) for worker in range(workers)]
    snapshot = Snapshot(
        position(workers), Pieces([*flats, *cut("residual.sum", sums, chunk_bounds(count, workers)[:-1])])
    )
    total = np.zeros(count, np.float32)
    middle = count // 2
    for worker in range(now):
        mine = np.full(count, np.nan, np.float32)
        for low, high in ((0, middle), (middle, count)):  # two buckets, or two shards
            snapshot.fill_residual(mine[low:high], low, count, worker, now, has_sums)
        if now == workers and (has_sums or worker):
            assert np.array_equal(mine, own[worker])
        total += mine
    assert np.array_equal(total, own.sum(axis=0) + (0 if has_sums else sums))


def test_states_that_were_each_workers_own_become_their_mean():
    own = np.array([[1.0, 2, 3], [3, 4, 8]], np.float32)
    pieces = Pieces([Flat("own_state.m", 3 * worker, in_memory(own[worker])) for worker in range(2)])
    out = np.empty(3, np.float32)
    Snapshot(position(2), pieces).fill_own_state(out, "m", 1, 2)
    assert out.tolist() == [3, 4, 8]
    Snapshot(position(2), pieces).fill_own_state(out, "m", 1, 3)
    assert out.tolist() == [2, 3, 5.5]
    Snapshot(position(2), pieces).fill_state(out[:2], "m", 1)
    assert out.tolist() == [3, 5.5, 5.5]
    with pytest.raises(CheckpointError, match="state 'v' is not there"):
        Snapshot(position(2), pieces).fill_state(out, "v", 0)


OPTIMIZER = optim.make(Optimizer(kind="ftrl", learning_rate=0.1), KERNELS)
FIRST = FirstRows((40, 3), seed=5, deviation=0.1)


def table(**more):
    return Table(FIRST, np.float32, OPTIMIZER, KERNELS, **more)


def whole_rows():
    rows = np.empty((40, 3), np.float32)
    FIRST.fill(rows, np.arange(40), KERNELS)
    return rows


def push(tables, shards, rng):
    for step in range(1, 7):
        keys = rng.permutation(40)[: rng.integers(1, 12)]
        gradient = rng.normal(size=(len(keys), 3)).astype(np.float32)
        for shard, one in enumerate(tables):
            own = np.flatnonzero(keys % shards == shard)
            one.push(keys[own], gradient[own], 1.0, step)


def snapshot_of(tables, shards):
    found = Pieces()
    for shard, one in enumerate(tables):
        found += one.pieces("t", shards, shard)
    return Snapshot(position(), found.copy())


def state_of(tables, shards):
    """All rows with their state, by key."""
    rows = {}
    for block in snapshot_of(tables, shards).rows("t", 3, np.dtype(np.float32), ("z", "squares")):
        for place, key in enumerate(block.keys.tolist()):
            rows[key] = [column[place].tobytes() for name, column in block.columns.items() if name != "uses"]
    return rows


@pytest.mark.parametrize("before", [1, 2, 3, "whole"])
@pytest.mark.parametrize("after", [1, 2, 4, 6, "whole"])
def test_tables_go_from_any_shards_to_any(before, after):
    def make(shards):
        is_whole = shards == "whole"
        return [WholeTable(whole_rows(), OPTIMIZER, KERNELS)] if is_whole else [table() for _ in range(shards)]

    first, second, direct = make(before), make(after), make(after)
    rng = np.random.default_rng(1)
    push(first, len(first), rng)
    snapshot = snapshot_of(first, len(first))
    for shard, one in enumerate(second):
        one.restore(snapshot, "t", len(second), shard)
    push(direct, len(direct), np.random.default_rng(1))
    assert state_of(second, len(second)) == state_of(direct, len(direct))  # rows that nobody has touched take no memory
    rest = np.random.default_rng(2)
    push(second, len(second), rest)
    push(direct, len(direct), np.random.default_rng(2))
    assert state_of(second, len(second)) == state_of(direct, len(direct))


def test_a_key_that_is_there_twice_or_beyond_the_table_is_an_error():
    one = table()
    one.push(np.array([3, 41]), np.ones((2, 3), np.float32), 1.0, 1)
    snapshot = snapshot_of([one], 1)
    with pytest.raises(CheckpointError, match="t has rows beyond the 40"):
        WholeTable(whole_rows(), OPTIMIZER, KERNELS).restore(snapshot, "t", 1, 0)
    twice = Snapshot(position(), Pieces(tables=[*snapshot.pieces.tables, *snapshot.pieces.tables]))
    with pytest.raises(CheckpointError, match="t has a key twice"):
        table().restore(twice, "t", 1, 0)


@pytest.mark.parametrize("after", [2, 3])
def test_counts_of_keys_without_rows_are_never_too_low(after):
    before = [table(admit_after=3, sketch_cells=64) for _ in range(2)]
    for _ in range(2):
        for shard, one in enumerate(before):
            one.push(np.arange(shard, 40, 2), np.ones((20, 3), np.float32), 1.0, 1)
    snapshot = snapshot_of(before, 2)
    for shard in range(after):
        one = table(admit_after=3, sketch_cells=64)
        one.restore(snapshot, "t", after, shard)
        keys = np.arange(shard, 40, after)
        assert len(one) == 0
        for _ in range(2):
            one.push(keys, np.ones((len(keys), 3), np.float32), 1.0, 2)
        assert len(one) == len(keys)


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_hand_each_other_their_state_in_memory(shards):
    """What ranks that survive others need: no file is in between."""

    def make(count):
        parts = [np.arange(11, dtype=np.float32)[low:high].copy() for low, high in bounds(count)]
        decoder = Decoder(False, np.float32, KERNELS)
        return [Shard(part, OPTIMIZER, decoder, Merger(KERNELS), in_turn(2), 1.0, {"t": table()}) for part in parts]

    def bounds(count):
        cut = chunk_bounds(11, count)
        return list(pairwise(cut))

    first, second = make(3), make(shards)
    rng = np.random.default_rng(0)
    for number, shard in enumerate(first):
        shard.state["z"][:] = rng.normal(size=len(shard.params))
        shard.tables["t"].push(np.arange(number, 30, 3), rng.normal(size=(10, 3)).astype(np.float32), 1.0, 1)
    pieces = Pieces()
    for number, (shard, (low, _)) in enumerate(zip(first, bounds(3), strict=True)):
        pieces += shard.pieces(low, 3, number)
    snapshot = Snapshot(position(steps=9, updates=18), pieces)
    for number, (shard, (low, _)) in enumerate(zip(second, bounds(shards), strict=True)):
        shard.restore(snapshot, low, shards, number)
        assert (shard.updates, shard.clocks) == (18, [9, 9])
        assert shard.has_had(1, 9)
    for name in ("z", "squares"):
        assert np.array_equal(
            np.concatenate([shard.state[name] for shard in second]),
            np.concatenate([shard.state[name] for shard in first]),
        )
    assert sum(len(shard.tables["t"]) for shard in second) == 30


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_a_signal_on_one_rank_stops_all_after_the_same_step(on_ranks, ranks):
    def body(transport):
        stop = Stop()
        when = When(transport, lambda: None, stop, 0, 0.0, 10_000, look_s=1e-4)
        for step in range(1, 10_000):
            if when.is_due(step):
                return step, when.signal
            if step == 50 and transport.rank == ranks - 1:
                stop.handle(signal.SIGUSR1, None)
            when.look(step)
        return None

    found = on_ranks(ranks, body)
    assert len(set(found)) == 1
    step, number = found[0]
    assert 51 <= step < 10_000
    assert number == signal.SIGUSR1


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_first_workers_clock_says_when(on_ranks, ranks):
    def body(transport):
        when = When(transport, lambda: None, None, 0, 1e-9 if transport.rank == 0 else 1e9, 1000)
        steps = []
        for step in range(1, 20):
            if when.is_due(step):
                steps.append(step)
                when.saved()
            when.look(step)
        return steps

    found = on_ranks(ranks, body)
    assert found[0][0] == 2
    assert all(steps == found[0] for steps in found)


def test_every_so_many_steps_and_after_the_last():
    from hpcps.comm.local import LocalWorld

    when = When(LocalWorld(1, 5).transports()[0], lambda: None, None, 4, 0.0, 10)
    due = []
    for step in range(1, 11):
        if when.is_due(step):
            due.append(step)
            if step != 4:  # that one had to wait
                when.saved()
        when.look(step)
    assert due == [4, 5, 8, 10]


def in_file(tensors):
    file = io.BytesIO()
    for _ in write_tensors(file, tensors):
        pass
    return file.getvalue()


ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(3), "c": np.zeros((0, 4), np.uint16)}


def test_places_are_where_the_arrays_are():
    content = in_file({name: stored_here(array) for name, array in ARRAYS.items()})
    for name, place in read_places(io.BytesIO(content), len(content)).items():
        found = np.frombuffer(content, place.dtype, ARRAYS[name].size, place.offset).reshape(place.shape)
        assert np.array_equal(found, ARRAYS[name])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_head_that_lies_is_an_error_or_harmless(data):
    content = bytearray(in_file({name: stored_here(array) for name, array in ARRAYS.items()}))
    head = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, head - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(head // 2, len(content))) :]
    try:
        places = read_places(io.BytesIO(content), len(content))
    except ValueError:
        return
    for place in places.values():
        assert 8 <= place.offset <= len(content)
        assert place.offset + np.prod(place.shape) * place.dtype.itemsize <= len(content)


@pytest.mark.parametrize(
    "head", [b"[]", b"7", b'{"a": 3}', b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', b"[" * 99999]
)
def test_heads_of_another_kind(head):
    content = struct.pack("<Q", len(head)) + head
    with pytest.raises(ValueError, match="its head cannot"):
        read_places(io.BytesIO(content), len(content))
    with pytest.raises(ValueError, match="its head cannot"):
        read_places(io.BytesIO(struct.pack("<Q", 1 << 60)), 8)
