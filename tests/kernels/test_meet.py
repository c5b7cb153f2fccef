"""Sums over shared memory: twins, order of addition, and threads that really meet."""

import threading

import numpy as np
import pytest
from hpcps_kernels import load
from hpcps_kernels.cpu.meet import BLOCK

BACK_ENDS = ("reference", "cpu")
DTYPES = ("float32", "float64", "int64")
LENGTHS = (0, 1, 17, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5)


def slots_of(ranks, count, dtype):
    return (np.random.default_rng(ranks).normal(size=(ranks, count)) * 1000).astype(dtype)


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
def test_what_is_deposited_is_collected_in_rank_order(back_end, dtype, ranks):
    kernels = load(back_end)
    for count in LENGTHS:
        given = slots_of(ranks, count, dtype)
        slots, flags = np.empty_like(given), np.zeros((ranks, 8), np.int64)
        out = np.full(count, 7, dtype)
        for rank in reversed(range(ranks)):
            assert not kernels.collect(out, slots, flags, 4, 3)
            assert (out == 7).all()
            kernels.deposit(slots[rank], flags, given[rank], rank, 4)
        assert kernels.collect(out, slots, flags, 4, 1)
        expected = given[0].copy()
        for row in given[1:]:
            expected += row
        assert np.array_equal(out, expected)
        assert np.array_equal(slots, given)
        assert flags[:, 0].tolist() == [4] * ranks
        assert not flags[:, 1:].any()


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_a_rank_ahead_does_not_hold_up_and_no_look_finds_nothing(back_end):
    kernels = load(back_end)
    flags = np.zeros((2, 8), np.int64)
    flags[:, 0] = 5, 6
    out = np.zeros(3)
    assert kernels.collect(out, np.ones((2, 3)), flags, 5, 1)
    assert not kernels.collect(out, np.ones((2, 3)), flags, 6, 10)
    assert not kernels.collect(out, np.ones((2, 3)), flags, 5, 0)


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_that_is_not_there(back_end, rank):
    flags = np.zeros((2, 8), np.int64)
    with pytest.raises(IndexError, match="deposit"):
        load(back_end).deposit(np.zeros(1), flags, np.zeros(1), rank, 1)
    assert not flags.any()


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_threads_meet_round_after_round(ranks):
    """Two sets of slots in turn are enough: nobody writes a slot that somebody may still read."""
    kernels = load("cpu")
    count, rounds = 1000, 200
    slots, flags = np.zeros((2, ranks, count)), np.zeros((ranks, 8), np.int64)
    wrong = []

    def body(rank):
        x, out = np.empty(count), np.empty(count)
        for number in range(1, rounds + 1):
            x[:] = number * ranks + rank
            here = slots[number % 2]
            kernels.deposit(here[rank], flags, x, rank, number)
            while not kernels.collect(out, here, flags, number, 100):
                pass
            if not (out == number * ranks * ranks + ranks * (ranks - 1) // 2).all():
                wrong.append((rank, number))

    threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []
