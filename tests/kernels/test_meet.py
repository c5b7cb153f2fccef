"""Rounds in shared memory: twins, order of addition, what is refused, and threads that really meet."""

import threading

import numpy as np
import pytest
from hpcps_kernels import load
from hpcps_kernels.desk import FINISHED, LINE_WORDS, SETS, UNSEEN, WAITING_FOR_ARRAYS, WAITING_FOR_SETS, make_desk

BACK_ENDS = ("reference", "cpu")
FORMATS = {"float32": "own", "float64": "own", "int64": "own", "bfloat16": "bfloat16", "float16": "float16"}
LENGTHS = (0, 1, 2, 7, 2048, 2049, 9001)
NO_BOUNDS, NO_PROGRAM = np.empty(0, np.int64), np.empty((0, 3), np.int64)
EVERYWHERE = 2**62  # bytes of the one region of threads


class Node:
    """Ranks of one process. ``seen``: whether all see all memory; else arrays go through scratch. ``briefly``: sums
    are begun by the kernel that is for them alone."""

    def __init__(self, ranks, scratch_bytes=1 << 17, small_bytes=64, seen=True, back_end="cpu", briefly=False):
        self.ranks, self.kernels, self.briefly = ranks, load(back_end), briefly
        self.lines = np.zeros((ranks, LINE_WORDS), np.int64)
        self.scratch = np.zeros((ranks, SETS * scratch_bytes), np.uint8)
        lines, scratch = ([row.ctypes.data for row in rows] for rows in (self.lines, self.scratch))
        regions = [(EVERYWHERE, [0] * ranks)] if seen else []
        self.desks = [make_desk(rank, lines, scratch, scratch_bytes, small_bytes, regions) for rank in range(ranks)]

    def call(self, rank, number, x, state, spins=1, **more):
        given = {"bounds": NO_BOUNDS, "program": NO_PROGRAM, "operation": "sum", "format": "own", "count": len(x)}
        given |= more
        work = np.empty(1 << 15, np.uint8)
        if self.briefly and state == 0:
            return self.kernels.meet_sum(x, work, self.desks[rank], given["format"], number, spins)
        return self.kernels.meet(x, work, desk=self.desks[rank], number=number, state=state, spins=spins, **given)

    def round(self, number, xs, **more):
        """One round, the ranks taking turns; each rank's last state."""
        states = [0] * self.ranks
        for _ in range(5):
            for rank in reversed(range(self.ranks)):
                if 0 <= states[rank] < FINISHED:
                    states[rank] = self.call(rank, number, xs[rank], states[rank], **more)
        return states


def given(ranks, count, name):
    values = np.random.default_rng(ranks).normal(size=(ranks, count)) * 1000
    if name == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(name).view(np.uint16) if name == "float16" else values.astype(name)


def added(rows, name):
    """The rows' sum from the first to the last, as float32 where they have 16 bits."""
    if name == "bfloat16":
        wide = [(row.astype(np.uint32) << 16).view(np.float32) for row in rows]
    else:
        wide = [row.view(np.float16).astype(np.float32) if name == "float16" else row for row in rows]
    total = wide[0].copy()
    for row in wide[1:]:
        total += row
    if name == "float16":
        return total.astype(np.float16).view(np.uint16)
    if name == "bfloat16":
        bits = total.view(np.uint32)
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return total


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("briefly", [False, True])
def test_all_get_the_sum_in_rank_order(back_end, name, ranks, seen, briefly):
    node = Node(ranks, seen=seen, back_end=back_end, briefly=briefly)
    for number, count in enumerate(LENGTHS, 1):
        rows = given(ranks, count, name)
        xs = rows.copy()
        assert node.round(number, xs, format=FORMATS[name]) == [FINISHED] * ranks
        for x in xs:
            assert np.array_equal(x, added(rows, name)), count


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("count", LENGTHS)
def test_scatter_writes_the_own_chunk_alone_and_gather_the_others(back_end, ranks, seen, count):
    node = Node(ranks, seen=seen, back_end=back_end)
    rows = given(ranks, count, "float64")
    middle = sorted(np.random.default_rng(count).integers(0, count + 1, ranks - 1).tolist())
    for number, bounds in enumerate((NO_BOUNDS, np.array([0, *middle, count]))):
        cut = bounds if len(bounds) else np.array([len(p) for p in np.array_split(rows[0], ranks)]).cumsum()
        cut = cut if len(bounds) else np.array([0, *cut])
        xs = rows.copy()
        assert node.round(2 * number + 1, xs, operation="scatter", bounds=bounds) == [FINISHED] * ranks
        for rank, x in enumerate(xs):
            expected = rows[rank].copy()
            own = slice(cut[rank], cut[rank + 1])
            expected[own] = added(rows, "float64")[own]
            assert np.array_equal(x, expected)
        assert node.round(2 * number + 2, xs, operation="gather", bounds=bounds) == [FINISHED] * ranks
        for x in xs:
            assert np.array_equal(x, added(rows, "float64"))


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("count", LENGTHS)
def test_a_program_says_the_order(back_end, name, count):
    """((a0 + a1) + b0) + (c0 + c1), where a, c bring two pieces and b one."""
    program = np.array([(0, 0, 0), (0, 1, 1), (1, 0, 1), (2, 0, 0), (2, 1, 2)])
    node = Node(3, back_end=back_end)
    pieces = given(5, count, name)
    xs = [pieces[:2].reshape(-1).copy(), pieces[2].copy(), pieces[3:].reshape(-1).copy()]
    assert node.round(1, xs, format=FORMATS[name], program=program, count=count) == [FINISHED] * 3
    if name in ("float16", "bfloat16"):
        wide = [added([piece, np.zeros_like(piece)], name) for piece in pieces]  # exact: to 16 bits and back
        floats = [(w.astype(np.uint32) << 16).view(np.float32) for w in wide]
        floats = floats if name == "bfloat16" else [w.view(np.float16).astype(np.float32) for w in wide]
        a0, a1, b0, c0, c1 = floats
        total = ((a0 + a1) + b0) + (c0 + c1)
        bits = total.view(np.uint32)
        rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
        expected = rounded if name == "bfloat16" else total.astype(np.float16).view(np.uint16)
    else:
        a0, a1, b0, c0, c1 = pieces
        expected = ((a0 + a1) + b0) + (c0 + c1)
    for x in xs:
        assert np.array_equal(x[:count], expected)


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("briefly", [False, True])
def test_what_is_larger_than_scratch_is_left_alone_on_all(back_end, briefly):
    node = Node(2, scratch_bytes=1024, seen=False, back_end=back_end, briefly=briefly)
    rows = given(2, 200, "float64")
    xs = [rows[0].copy(), rows[1].copy()]
    assert node.round(1, xs) == [UNSEEN] * 2
    assert all(np.array_equal(x, row) for x, row in zip(xs, rows, strict=True))
    assert node.round(2, [x[:128] for x in xs]) == [FINISHED] * 2


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize(
    ("x", "more"), [(np.zeros(9), {}), (np.zeros(10, np.float32), {}), (np.zeros(10), {"operation": "scatter"})]
)
@pytest.mark.parametrize(("ahead", "briefly"), [(False, False), (True, False), (False, True)])
def test_ranks_that_come_for_different_things_are_told_who(back_end, x, more, ahead, briefly):
    node = Node(3, back_end=back_end)
    for rank in (0, 1):
        assert node.call(rank, 1, np.zeros(10), 0) == WAITING_FOR_ARRAYS
        if ahead:
            assert node.call(rank, 2, np.zeros(10), 0) == WAITING_FOR_ARRAYS
    node.briefly = briefly and not more  # the last one begins with a sum
    assert node.call(2, 1, x, 0, **more) == -1
    assert node.call(0, 1, np.zeros(10), WAITING_FOR_ARRAYS) == -3


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_no_rank_runs_ahead_of_the_sets_of_scratch(back_end):
    node = Node(2, back_end=back_end)
    for number in range(1, SETS + 1):
        assert node.call(0, number, np.zeros(3), 0) == WAITING_FOR_ARRAYS
    assert node.call(0, SETS + 1, np.zeros(3), 0) == WAITING_FOR_SETS


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_what_cannot_be_right_is_refused(back_end):
    node, x = Node(2, back_end=back_end), np.zeros(4)
    for more in ({"count": 5}, {"count": -1}, {"bounds": np.array([0, 5, 4])}, {"bounds": np.array([0, 4])}):
        with pytest.raises(ValueError, match="meet"):
            node.call(0, 1, x, 0, **more)
    with pytest.raises(ValueError, match="program"):
        node.call(0, 1, x, 0, program=np.array([(2, 0, 0)]))


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("seen", [True, False])
def test_threads_meet_round_after_round(ranks, seen):
    """Two rounds under way at a time, of all forms in turn."""
    node, wrong = Node(ranks, seen=seen), []
    counts = (4, 3000, 1, 8, 5000)

    def wait(rank, number, x, state):
        while state < FINISHED:
            state = node.call(rank, number, x, state, spins=100)

    def body(rank):
        for number in range(1, 200, 2):
            node.briefly = number > 100
            xs = [np.full(counts[n % 5], float(n * ranks + rank)) for n in (number, number + 1)]
            states = [node.call(rank, n, x, 0, spins=0) for n, x in zip((number, number + 1), xs, strict=True)]
            for n, x, state in zip((number, number + 1), xs, states, strict=True):
                wait(rank, n, x, state)
                if not (x == n * ranks * ranks + ranks * (ranks - 1) // 2).all():
                    wrong.append((rank, n))

    threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []
