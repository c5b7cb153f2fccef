"""Tables of a shard against a dict of rows that the reference kernels update: the same bits, whatever happens."""

import gc
import json
import mmap
import subprocess
import sys
from pathlib import Path

import hpcps_kernels
import numpy as np
import pytest
from hpcps_kernels.row_index import RowIndex
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcps import optim
from hpcps.config import Optimizer
from hpcps.first import First, FirstRows, draw_seed, whole
from hpcps.params import Params
from hpcps.rows import Found
from hpcps.server import growing
from hpcps.server import table as tables
from hpcps.server.table import Table, WholeTable

REFERENCE, CPU = (hpcps_kernels.load(name) for name in ("reference", "cpu"))
BENCH = Path(__file__).parents[2] / "bench" / "tables.py"
LOW, HIGH = np.iinfo(np.int64).min, np.iinfo(np.int64).max
OPTIMIZERS = {
    "sgd": Optimizer(kind="sgd", l1=0.01),
    "momentum": Optimizer(kind="sgd", momentum=0.9),
    "nesterov": Optimizer(kind="sgd", momentum=0.9, nesterov=True),
    "adagrad": Optimizer(kind="adagrad", l2=0.02),
    "rmsprop": Optimizer(kind="rmsprop"),
    "adam": Optimizer(kind="adam"),
    "adamw": Optimizer(kind="adamw"),
    "ftrl": Optimizer(kind="ftrl", l1=0.1, l2=0.01),
}


class Rows:
    """What a table is to be: a dict of rows, each with its state, its pushes and the step of the last one."""

    def __init__(self, first, dtype, options, admit_after=0):
        self.first, self.dtype, self.admit_after = first, dtype, admit_after
        self.optimizer = optim.make(options, REFERENCE)
        self.rows, self.counts, self.dropped = {}, {}, 0

    def fresh(self, key):
        row = np.empty((1, self.first.width), self.dtype)
        self.first.fill(row, np.array([key]), REFERENCE)
        return row

    def pull(self, keys):
        rows = [self.rows[key][0] if key in self.rows else self.fresh(key) for key in keys.tolist()]
        return np.concatenate([np.empty((0, self.first.width), self.dtype), *rows])

    def push(self, keys, gradient, scale, step):
        for key, values in zip(keys.tolist(), gradient, strict=True):
            if key not in self.rows:
                self.counts[key] = self.counts.get(key, 0) + 1
                if self.counts[key] <= self.admit_after:
                    self.dropped += 1
                    continue
                row = self.fresh(key)
                self.rows[key] = [row, self.optimizer.init(row), 0, 0]
            row, state, pushes, _ = self.rows[key]
            self.optimizer.update_rows(row, state, values[None], np.array([0]), scale, step)
            self.rows[key][2:] = pushes + 1, step

    def evict(self, min_pushes, since_step):
        kept = {key: row for key, row in self.rows.items() if row[2] >= min_pushes and row[3] >= since_step}
        gone, self.rows, self.counts = len(self.rows) - len(kept), kept, {}
        return gone


KEYS = st.one_of(st.integers(-6, 20), st.integers(LOW, HIGH), st.sampled_from([LOW, HIGH, -1, 0, 1 << 40]))
SOME_KEYS = st.lists(KEYS, max_size=25, unique=True).map(lambda keys: np.array(keys, np.int64))
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), SOME_KEYS),
        st.tuples(st.just("push"), SOME_KEYS),
        st.tuples(st.just("pull"), SOME_KEYS),
        st.tuples(st.just("push what was pulled"), st.none()),
        st.tuples(st.just("evict"), st.tuples(st.integers(0, 3), st.integers(0, 4))),
    ),
    max_size=12,
)


def check_all(table, rows):
    """Every row, in the order in which rows were made."""
    assert len(table) == len(rows.rows)
    blocks = list(table.blocks())
    assert [key for keys, _ in blocks for key in keys.tolist()] == list(rows.rows)
    for keys, values in blocks:
        np.testing.assert_array_equal(values, rows.pull(keys), strict=True)
    assert table.dropped == rows.dropped


@pytest.mark.parametrize("kind", OPTIMIZERS)
@settings(max_examples=25, deadline=None)
@given(
    calls=CALLS,
    width=st.one_of(st.integers(1, 9), st.just(64)),
    dtype=st.sampled_from(["float32", "float64"]),
    kernels=st.sampled_from([CPU, CPU, REFERENCE]),
    deviation=st.sampled_from([0.0, 0.3]),
    admit_after=st.integers(0, 2),
    block=st.sampled_from([1, 3, 1 << 16]),
)
def test_a_table_is_a_dict_of_rows(kind, calls, width, dtype, kernels, deviation, admit_after, block):
    first = FirstRows((1, width), 5, deviation, zeros=1)
    rows = Rows(first, dtype, OPTIMIZERS[kind], admit_after)
    optimizer = optim.make(OPTIMIZERS[kind], kernels)
    more = {"admit_after": admit_after, "capacity": 1, "sketch_cells": 1 << 18}
    table = Table(first, dtype, optimizer, kernels, tracks_use=True, **more)
    rng = np.random.default_rng(len(calls))
    found = Found(np.empty(0, np.int64))  # of the last pull, whatever has happened since
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BLOCK", block)
        for step, (call, argument) in enumerate(calls, 1):
            if call == "evict":
                age = step - argument[1]
                assert table.evict(argument[0], age) == rows.evict(argument[0], age)
            elif call == "pull":
                found = Found(argument)
                pulled = table.pull(argument, found=found)
                np.testing.assert_array_equal(pulled, rows.pull(argument), strict=True)
                assert len(table) == len(rows.rows)
            else:
                keys = found.keys if argument is None else argument
                gradient = rng.normal(size=(len(keys), width)).astype(dtype)
                table.push(keys, gradient, 0.5, step, found)
                rows.push(keys, gradient, 0.5, step)
        check_all(table, rows)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_table_by_key_has_the_bits_of_a_whole_one(kind):
    first = FirstRows((5000, 2, 3), 11, 0.1)
    optimizer = optim.make(OPTIMIZERS[kind], CPU)
    dense = Params.zeros({"bias": (1,)}, np.float32)
    params = whole(First(dense, {"table": first}), CPU)
    full = WholeTable(params.table("table"), optimizer, CPU)
    shards = [Table(first, np.float32, optimizer, CPU) for _ in range(3)]
    rng = np.random.default_rng(0)
    for step in range(1, 8):
        keys = rng.choice(5000, 1000, replace=False)
        gradient = rng.normal(size=(1000, 6)).astype(np.float32)
        full.push(keys, gradient, 0.1, step)
        for number, shard in enumerate(shards):
            own = keys % 3 == number
            shard.push(keys[own], gradient[own], 0.1, step)
    everything = np.arange(5000)
    for number, shard in enumerate(shards):
        keys = everything[everything % 3 == number]
        np.testing.assert_array_equal(shard.pull(keys), full.pull(keys), strict=True)
    assert [len(keys) for keys, _ in full.blocks()] == [5000]
    assert full.nbytes == 5000 * 24 * (1 + len(optimizer.init(np.empty(0))))
    assert (full.evict(5, 5), len(full), full.dropped) == (0, 5000, 0)
    before = params.flat.copy()
    for call in (lambda keys: full.pull(keys), lambda keys: full.push(keys, np.ones((2, 6), np.float32), 1.0, 9)):
        with pytest.raises(IndexError):
            call(np.array([3, 5000]))
    np.testing.assert_array_equal(params.flat, before)


def adagrad_table(**more):
    first = FirstRows((1, 16), 3, 0.1)
    return Table(first, np.float32, optim.make(Optimizer(), CPU), CPU, **more)


def test_a_pull_takes_no_memory_and_writes_where_it_is_told():
    table, keys = adagrad_table(), np.arange(1000) << 40
    before, out = table.nbytes, np.empty((1000, 16), np.float32)
    assert table.pull(keys, out) is out
    assert (len(table), table.nbytes) == (0, before)
    assert out.std() == pytest.approx(0.1, rel=0.05)
    table.push(keys[::2].copy(), np.zeros((500, 16), np.float32), 1.0, 1)
    assert len(table) == 500
    np.testing.assert_array_equal(table.pull(keys), out)


def test_nothing_is_copied_as_a_table_grows_and_its_memory_is_counted():
    table = adagrad_table()
    addresses = [column.array.ctypes.data for column in table._columns()]
    for start in range(0, 300_000, 10_000):
        table.push(np.arange(start, start + 10_000) * 977, np.ones((10_000, 16), np.float32), 1.0, 1)
    assert [column.array.ctypes.data for column in table._columns()] == addresses
    rows = 300_000 * (16 * 4 * 2 + 8)
    assert rows + 300_000 * 32 <= table.nbytes <= rows + 300_000 * 64


def resident_bytes():
    """What the lines of /proc say of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_bounded_where_rows_come_and_go():
    table, gradient = adagrad_table(tracks_use=True), np.ones((50_000, 16), np.float32)
    gc.collect()  # of what tests before have left
    seen = []
    for step in range(1, 25):
        table.push(np.arange(50_000) + step * 1_000_003, gradient, 1.0, step)
        if step % 3 == 0:
            assert table.evict(since_step=step) == 100_000 + (50_000 if step > 3 else 0)
            seen.append(resident_bytes())
    assert len(table) == 50_000
    assert max(seen) < seen[1] + (8 << 20)  # 24 steps' rows would take 200 MB


def test_a_crowd_of_rare_keys_takes_no_memory():
    table, keys = adagrad_table(admit_after=1, sketch_cells=1 << 18), np.arange(20_000)
    before = table.nbytes
    for step in range(1, 6):
        table.push(keys + step * 1_000_003, np.ones((20_000, 16), np.float32), 1.0, step)
    assert table.dropped > 99_500  # a few are taken for others
    assert table.nbytes <= before + 500 * 200
    often = np.array([7])
    for step in range(2):
        np.testing.assert_array_equal(table.pull(often), adagrad_table().pull(often))
        table.push(often, np.ones((1, 16), np.float32), 1.0, 6 + step)
    assert (table.pull(often) != adagrad_table().pull(often)).all()


def test_where_little_is_reserved_rows_move_and_stay_what_they_are(monkeypatch):
    wanted = adagrad_table(tracks_use=True)
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    monkeypatch.setattr(growing, "_reserved", lambda all_bytes: mmap.mmap(-1, 1 << 12, flags=anonymous))
    table = adagrad_table(tracks_use=True)
    for step in range(1, 6):
        keys, gradient = np.arange(0, 3000 * step, step), np.full((3000, 16), step, np.float32)
        for one in (table, wanted):
            one.push(keys, gradient, 1.0, step)
            if step == 4:
                assert one.evict(since_step=3) > 0
    for (keys, rows), (others, wanted_rows) in zip(table.blocks(), wanted.blocks(), strict=True):
        np.testing.assert_array_equal(keys, others)
        np.testing.assert_array_equal(rows, wanted_rows)


def test_where_a_program_may_not_reserve_all_there_is():
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from hpcps.server.growing import FEW_BYTES, GrowingRows
import pytest
rows = GrowingRows(2, "int64")
assert len(rows.array) * 16 == FEW_BYTES
rows.array[:] = 5
rows.reserve({1 << 20})
assert len(rows.array) == 1 << 20 and (rows.array[:FEW_BYTES // 16] == 5).all()
with pytest.raises(MemoryError, match="no room for"):
    rows.reserve({1 << 32})
assert (rows.array[:FEW_BYTES // 16] == 5).all()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_process_with_tables_can_fork():
    """What is reserved for them is more than there is, and would be counted twice."""
    code = """
import subprocess, sys
from hpcps.server.growing import GrowingRows
columns = [GrowingRows(2, "float32") for _ in range(4)]
for column in columns:
    column.array[0] = 1
    column.reserve(10)
subprocess.run([sys.executable, "-c", ""], preexec_fn=lambda: None, check=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_refused():
    with pytest.raises(ValueError, match="admitted after 0 to 65534 pushes, not -1"):
        adagrad_table(admit_after=-1)
    with pytest.raises(ValueError, match="must be made with tracks_use"):
        adagrad_table().evict(1)


def test_seeds_of_tables_differ_and_come_from_the_generator():
    seeds = [[draw_seed(rng) for _ in range(3)] for rng in (np.random.default_rng(4) for _ in range(2))]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3
    assert all(0 <= seed < 2**63 for seed in seeds[0])


def test_the_bench_runs_and_finds_nothing_wrong(tmp_path):
    words = ["--rows", "70000", "--keys", "500", "--widths", "3", "--rounds", "2", "--optimizer", "adam"]
    command = [sys.executable, str(BENCH), *words, "--json", str(tmp_path / "tables.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "tables.json").read_text())["rows"]
    assert [row["case"] for row in told][:3] == ["gather_rows", "pull", "push"]
    assert all(row["wrong"] == 0 and row["median_s"] > 0 for row in told[:-1])
    assert 3 * 4 * 3 + 8 + 32 <= told[-1]["bytes_per_row"] <= 3 * 4 * 3 + 8 + 64


def test_rows_that_a_pull_has_found_are_not_looked_up_again(monkeypatch):
    sgd, insert, looked = optim.make(OPTIMIZERS["sgd"], CPU), RowIndex.insert, []

    def noted(index, keys):
        looked.append(len(keys))
        return insert(index, keys)

    monkeypatch.setattr(RowIndex, "insert", noted)
    table = Table(FirstRows((1, 2), seed=0), np.float32, sgd, CPU, tracks_use=True)
    keys, ones = np.arange(5), np.ones((5, 2), np.float32)
    table.push(keys[:3], ones[:3], 1.0, 1)
    found = Found(keys)
    table.pull(keys, found=found)
    for step in 2, 3:
        table.push(keys, ones, 1.0, step, found)
    assert looked == [3, 2]
    table.push(keys.copy(), ones, 1.0, 4, found)  # for all that is known, of other keys
    assert looked == [3, 2, 5]
    assert table.evict(since_step=5) == 5
    table.push(keys, ones, 1.0, 5, found)
    assert looked == [3, 2, 5, 5]
