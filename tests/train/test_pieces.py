"""The small pieces: parameters, parts, sums, seats, the run's folder, the launcher's banners."""

import hashlib
import io
import json
import os
import re
from itertools import pairwise

import hpcps_kernels
import numpy as np
import pytest

from hpcps import machine, parts, report
from hpcps.banners import Banners
from hpcps.comm.order import halves, pieces
from hpcps.comm.topology import chunk, chunk_bounds
from hpcps.errors import ConfigError, DataError, ModelError
from hpcps.machine import Seat
from hpcps.models import Facts
from hpcps.pace import Pace, Straggler, Stragglers
from hpcps.params import Params
from hpcps.rows import Rows
from hpcps.run_folder import RunFolder, Trained, read_model, read_summary, write_whole
from hpcps.sums import Decoder, FloatSum, TreeSum, fixed_point_scale

KERNELS = hpcps_kernels.load("reference")


def test_params_are_views_of_one_buffer_and_hash_in_name_order():
    params = Params({"b": (2,), "a": (2, 2)}, np.arange(6, dtype=np.float32))
    params["a"][0, 1] = 9
    assert params.flat.tolist() == [0, 1, 2, 9, 4, 5]
    expected = hashlib.sha256(np.array([2, 9, 4, 5, 0, 1], "<f4").tobytes()).hexdigest()
    assert params.sha256() == expected
    other = Params({"a": (2, 2), "b": (2,)}, np.array([2, 9, 4, 5, 0, 1], np.float32))
    assert other.sha256() == expected


def test_params_read_only_and_of_the_wrong_size():
    params = Params.zeros({"w": (3,)}, np.float64)
    with pytest.raises(ValueError, match="read-only"):
        params.read_only()["w"][0] = 1
    params["w"][0] = 1
    with pytest.raises(ValueError, match="3 parameters do not fit"):
        params.on(np.zeros(4))


@pytest.mark.parametrize("workers", range(1, 9))
def test_grains_are_the_same_for_all_workers_and_each_has_one_owner(workers):
    plans = [parts.grains(100, 8, worker, workers) for worker in range(workers)]
    assert len({tuple(plan.bounds) for plan in plans}) == 1
    assert [part for plan in plans for part in plan.owned] == list(range(8))
    assert sum(plans[0].size(part) for part in range(8)) == 100


def test_more_workers_than_grains_is_an_error_that_says_so():
    with pytest.raises(ConfigError, match=r"train\.grains = 2 is fewer than 3 workers"):
        parts.grains(100, 2, 0, 3)


@pytest.mark.parametrize(("batch", "threads"), [(10, [2, 1]), (256, [1, 1, 1]), (5, [4, 4, 4]), (3, [8, 8, 8])])
def test_threads_share_their_workers_share(batch, threads):
    for worker in range(len(threads)):
        plan = parts.by_threads(batch, threads, worker)
        share = chunk(batch, len(threads), worker)
        assert plan.bounds[plan.owned.start] == share.start
        assert plan.bounds[plan.owned.stop] == share.stop
        assert all(plan.size(part) > 0 for part in range(plan.total))
        assert len(plan.owned) <= threads[worker]


def test_a_batch_smaller_than_the_workers_is_an_error():
    with pytest.raises(ConfigError, match=r"train\.batch = 2 is fewer than 3 workers"):
        parts.by_threads(2, [1, 1, 1], 0)


def test_the_order_of_an_epoch_depends_on_seed_epoch_and_block_alone():
    first = parts.order(1, 2, 3, 50)
    assert sorted(first) == list(range(50))
    assert np.array_equal(first, parts.order(1, 2, 3, 50))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not np.array_equal(first, parts.order(*other, 50))


def tree_sum(owned, threads, grains, agree=lambda x: x):
    """What one worker makes of its grains, written where its shares say."""
    count = len(grains[0])
    total = len(grains)
    added = TreeSum(owned, total, threads, count, grains[0].dtype, lambda n, dtype: np.empty(n, dtype), KERNELS, agree)
    for number, share in enumerate(added.shares):
        top = 0
        for position, adds in zip(share.parts, share.adds, strict=True):
            share.stack[top] = grains[owned[position]]
            top += 1
            for _ in range(adds):
                share.stack[top - 2] += share.stack[top - 1]
                top -= 1
        added.take(number)
    return added.finish()


def in_tree_order(grains, node):
    if len(node) == 1:
        return grains[node.start]
    low, high = (in_tree_order(grains, half) for half in halves(node))
    return low + high


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("total", [1, 8, 12, 16, 29])
@pytest.mark.parametrize("threads", [1, 2, 3, 40])
def test_pieces_are_those_of_the_tree_whatever_the_threads(dtype, total, threads):
    rng = np.random.default_rng(total)
    grains = [(rng.normal(size=101) * 10.0 ** rng.integers(-6, 6)).astype(dtype) for _ in range(total)]
    for workers in range(1, min(total, 8) + 1):
        for low, high in pairwise(chunk_bounds(total, workers)):
            found = tree_sum(range(low, high), threads, grains)
            wanted = [in_tree_order(grains, piece).tobytes() for piece in pieces(low, high, total)]
            assert [piece.tobytes() for piece in found.dense] == wanted
            assert found.total.tobytes() == wanted[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
def test_exact_sums_of_rows_do_not_depend_on_who_adds_what(dtype, magnitude):
    rng = np.random.default_rng(3)
    grains = [(rng.normal(size=(5, 3)) * magnitude * 10.0 ** rng.integers(-6, 6)).astype(dtype) for _ in range(12)]
    rows = [{"table": Rows(rng.permutation(9)[:5], values)} for values in grains]
    largest = max(float(np.abs(grain).max()) for grain in grains)
    decoder = Decoder(True, dtype, KERNELS)
    found = set()
    for bounds in ([0, 12], [0, 5, 12], [0, 4, 8, 12], [0, 1, 10, 12]):
        totals = np.zeros((9, 3), np.int64)
        for low, high in pairwise(bounds):
            nothing = (0, dtype, lambda n, dtype: np.empty(n, dtype))
            added = TreeSum(range(low, high), 12, 2, *nothing, KERNELS, lambda _: largest)
            for number, share in enumerate(added.shares):
                added.take(number, [rows[low + position] for position in share.parts])
            summed = added.finish()
            totals[summed.rows["table"].keys] += summed.rows["table"].values
        found.add(decoder.values(totals, summed.scale).tobytes())
    assert len(found) == 1
    exact = np.zeros((9, 3))
    for one in rows:
        exact[one["table"].keys] += one["table"].values
    near = np.frombuffer(found.pop(), dtype).reshape(9, 3)
    assert np.allclose(near, exact, rtol=4 * np.finfo(dtype).eps, atol=largest * 1e-15)


@pytest.mark.parametrize("parts_count", [1, 2, 3, 16, 1000])
@pytest.mark.parametrize("largest", [5e-324, 1e-38, 0.999, 1.0, 1.001, 3e38, 1.7e308])
def test_the_fixed_point_scale_uses_the_range_and_cannot_overflow(parts_count, largest):
    scale = fixed_point_scale(largest, parts_count)
    assert np.frexp(scale)[0] == 0.5  # a power of two
    assert largest * scale * parts_count <= 2.0**62
    assert scale == 2.0**1000 or largest * scale * parts_count > 2.0**59


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_is_refused(bad):
    with pytest.raises(ModelError, match="the gradient is not finite"):
        tree_sum(range(1), 1, [np.array([1.0, bad])])
    added = TreeSum(range(1), 1, 1, 0, "float64", lambda n, dtype: np.empty(n, dtype), KERNELS, lambda x: x)
    with pytest.raises(ModelError, match="the gradient is not finite"):
        added.take(0, [{"table": Rows(np.arange(2), np.array([[1.0], [bad]]))}])


def test_float_sums_add_in_order():
    buffers = [np.full(3, value, np.float32) for value in (1.0, 2.0, 4.0)]
    added = FloatSum(buffers, KERNELS)
    for part in range(3):
        added.take(part)
    assert added.finish()[0].tolist() == [7, 7, 7]


def test_threads_and_crowding_follow_from_the_cores():
    alone = [Seat(0, "a", (0, 1, 2, 3), 1)]
    assert machine.threads(alone, 0) == 4
    shared = [Seat(0, "a", (0, 1), 1), Seat(1, "a", (0, 1), 2), Seat(2, "a", (0, 1), 3)]
    assert [machine.threads(shared, rank) for rank in range(3)] == [1, 1, 1]
    assert machine.crowded(shared, 0)
    bound = [Seat(0, "a", (0,), 1), Seat(1, "a", (1,), 2), Seat(2, "b", (0, 1), 3)]
    assert [machine.threads(bound, rank) for rank in range(3)] == [1, 1, 2]
    assert not machine.crowded(bound, 0)
    assert not machine.crowded(bound, 2)
    double = [Seat(0, "a", (0,), 1), Seat(1, "a", (0,), 2), Seat(2, "a", (1, 2), 3)]
    assert [machine.crowded(double, rank) for rank in range(3)] == [True, True, False]
    assert machine.nodes(bound) == 2


def trained():
    params = Params({"w": (2, 3), "b": (2,)}, np.arange(8, dtype=np.float32))
    return Trained(params, Facts(3, 2), np.array([-1, 5]), np.zeros(3), np.ones(3))


def test_a_run_folder_is_finished_only_at_the_end(tmp_path):
    folder = RunFolder(tmp_path / "a" / "run")
    folder.check(overwrite=False)
    folder.begin("x = 1\n")
    with pytest.raises(DataError, match=r"is not a finished run"):
        read_summary(folder.path)
    folder.check(overwrite=False)
    folder.begin("x = 2\n")
    folder.add_metrics({"step": 1})
    folder.write_model(trained(), {})
    folder.end({"loss": 1.5})
    assert read_summary(folder.path) == {"loss": 1.5}
    assert [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()] == [{"step": 1}]
    found = read_model(folder.path)
    assert found.params.sha256() == trained().params.sha256()
    assert found.classes is not None
    assert found.classes.tolist() == [-1, 5]
    assert sorted(os.listdir(folder.path)) == ["config.toml", "metrics.jsonl", "model.safetensors", "summary.json"]


def test_a_finished_run_is_not_overwritten_unless_told_to(tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin("")
    folder.write_model(trained(), {})
    folder.end({})
    with pytest.raises(ConfigError, match="holds a finished run"):
        folder.check(overwrite=False)
    folder.check(overwrite=True)
    assert (tmp_path / "summary.json").exists()
    folder.begin("")
    assert not (tmp_path / "summary.json").exists()


def test_a_folder_of_other_things_and_a_file_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        RunFolder(tmp_path).check(overwrite=True)
    with pytest.raises(ConfigError, match="cannot write there"):
        RunFolder(tmp_path / "thesis.tex").check(overwrite=True)


@pytest.mark.parametrize("keep", [0, 7, 8, 50, 200])
def test_a_damaged_model_is_named(tmp_path, keep):
    folder = RunFolder(tmp_path)
    folder.begin("")
    folder.write_model(trained(), {})
    folder.end({})
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"model\.safetensors: cannot be read"):
        read_model(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    file = tmp_path / "x"
    file.write_text("old")

    def write(aside):
        aside.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(file, write)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert file.read_text() == "old"


def test_pace_leaves_the_first_step_and_pauses_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("hpcps.pace.time.perf_counter", lambda: now[0])
    pace = Pace(10)
    pace.start()
    for seconds in (100.0, 1.0, 1.0):
        now[0] += seconds
        pace.step()
    pace.stop()
    now[0] += 1000.0
    assert (pace.first_step_s, pace.train_s, pace.lap()) == (100.0, 2.0, 10.0)
    pace.start()
    now[0] += 5.0
    pace.step()
    pace.stop()
    assert pace.lap() == 2.0
    assert pace.samples_per_s == pytest.approx(30 / 7)


@pytest.mark.parametrize(
    ("environment", "is_terminal", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, True, False),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "HPCPS_TERMINAL": "1"}, False, True),
        ({"HPCPS_TERMINAL": "0"}, True, False),
    ],
)
def test_a_bar_is_for_people_only(monkeypatch, environment, is_terminal, expected):
    monkeypatch.setattr("hpcps.report.os.environ", environment)
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    assert report.on_terminal(stream) is expected


BANNER = ["-" * 76 + "\n", "prterun has exited\n", "\n", "-" * 76 + "\n"]


def test_the_launchers_banner_is_held_back_and_known_whether_a_rank_said_why():
    said = "hpcps: error: rank 1, step 3: no\n"
    told = Banners()
    noise = "[warn] Epoll ADD(4) on fd 21 failed. Old events were 0; write change was 1 (add): Bad file descriptor\n"
    assert list(told.without(["a\n", said, noise, *BANNER, "b\n", "\0"])) == ["a\n", said, "b\n"]
    assert told.explained
    told = Banners()
    assert list(told.without(["a\n", *BANNER, "b\n"])) == ["a\n", "b\n"]
    assert not told.explained


@pytest.mark.parametrize(
    ("text", "status", "expected"),
    [
        (
            "prterun noticed that process rank 2 on node a exited on signal 9 (Killed).",
            137,
            "rank 2 .*signal 9",
        ),
        ("=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n=   EXIT CODE: 9\n", 9, "a rank .*signal 9"),
        ("nothing known", 9, "a rank was lost .*signal 9"),
        (
            "The listener failed.\nWe cannot\ncontinue.\n",
            213,
            r"status 213 \(The listener failed. We cannot continue.\);",
        ),
        ("", 213, "a rank was lost .*status is 213"),
    ],
)
def test_a_lost_rank_is_one_line(text, status, expected):
    told = Banners()
    rule = "-" * 76 + "\n"
    assert list(told.without([rule, *text.splitlines(keepends=True), rule])) == []
    assert re.search(expected, told.lost(status))
    assert "\n" not in told.lost(status)


def test_stragglers_are_those_far_from_the_median_of_the_others_where_it_costs_time():
    seen = Stragglers(2.0, ["a", "a", "b", "b"])
    assert seen.are_sought
    assert seen.since([1.0, 1.0, 1.0, 1.9], 10.0) == ()
    assert seen.since([1.0, 5.0, 1.0, 2.1], 20.0) == (Straggler(1, "a", 5.0), Straggler(3, "b", 2.1))
    assert seen.since([0.1, 0.1, 0.1, 0.5], 30.0) == ()  # 0.4 s of ten
    assert seen.of_all() == (Straggler(1, "a", 2.9), Straggler(3, "b", 2.1))
    assert seen.since([0.0, 0.0, 0.0, 2.0], 40.0)[0].rank == 3
    pair = Stragglers(2.0, ["a", "b"])
    assert pair.since([1.0, 3.0], 4.0) == (Straggler(1, "b", 3.0),)
    assert not Stragglers(0.0, ["a", "b"]).are_sought
    assert not Stragglers(2.0, ["a"]).are_sought


def test_stragglers_are_named_on_one_line():
    several = [Straggler(rank, f"n{rank}", 9.5 - rank) for rank in range(5)]
    assert report.named(several[:1]) == "note: rank 0 (n0): 9.5 times slower than the median"
    told = ", ".join(f"rank {rank} (n{rank}): {9.5 - rank} times slower" for rank in range(3))
    assert report.named(several) == f"note: {told} than the median, and 2 more"
