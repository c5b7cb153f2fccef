"""All-reduce through shared memory, on threads here (tests/mpi has the processes): the file is the same for both."""

import os

import hpcps_kernels
import numpy as np
import pytest

from hpcps.comm import shared
from hpcps.comm.shared import SharedAllreduce
from hpcps.errors import CommError, CommTimeout

KERNELS = hpcps_kernels.load("cpu")


def make(transport, count, dtype, crowded=True):
    return SharedAllreduce(transport, count, dtype, KERNELS.deposit, KERNELS.collect, crowded)


@pytest.mark.parametrize("ranks", range(1, 9))
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_sums_round_after_round(on_ranks, ranks, dtype):
    def body(transport):
        found = []
        for count in (0, 1, ranks - 1, ranks, ranks + 1, 1001):
            allreduce = make(transport, count, dtype)
            for number in range(5):
                x = (np.arange(count) * ranks + transport.rank + number).astype(dtype)
                allreduce.start(x).wait()
                found.append(x - number * ranks)
        return found

    for results in zip(*on_ranks(ranks, body), strict=True):
        count = len(results[0])
        total = np.arange(count) * ranks * ranks + ranks * (ranks - 1) // 2
        for result in results:
            assert np.array_equal(result, total.astype(dtype))


def test_the_same_bits_on_all_ranks_and_in_rank_order(on_ranks):
    given = np.random.default_rng(1).normal(size=(5, 1001)).astype(np.float32)

    def body(transport):
        x = given[transport.rank].copy()
        make(transport, 1001, np.float32).start(x).wait()
        return x

    expected = given[0].copy()
    for row in given[1:]:
        expected += row
    for x in on_ranks(5, body):
        assert np.array_equal(x, expected)


def test_nothing_is_left_behind(on_ranks):
    before = set(os.listdir(shared.FOLDER))
    on_ranks(3, lambda transport: make(transport, 100, np.float32))
    assert {name for name in os.listdir(shared.FOLDER) if name.startswith("hpcps-")} <= before


def test_ranks_that_do_not_come_are_named(on_ranks):
    def body(transport):
        allreduce = make(transport, 10, np.float32)
        if transport.rank == 1:
            allreduce.start(np.ones(10, np.float32)).wait()

    with pytest.raises(CommTimeout, match=r"rank 1 waited 0\.3 s for the array of rank\(s\) 0, 2"):
        on_ranks(3, body, timeout_s=0.3)


def test_too_little_memory_is_an_error_on_all_ranks(on_ranks, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hpcps.comm.shared.os.posix_fallocate", full)
    _, errors = on_ranks.run(3, lambda transport: make(transport, 10, np.float32))
    assert [type(error) for error in errors] == [CommError] * 3
    assert "cannot take 432 bytes of shared memory: No space left" in str(errors[0])
    assert not [name for name in os.listdir(shared.FOLDER) if name.startswith("hpcps-")]


def test_ranks_that_see_different_memory_are_an_error(on_ranks, monkeypatch):
    monkeypatch.setattr("hpcps.comm.shared._open", lambda path, size: np.zeros(size, np.uint8))
    _, errors = on_ranks.run(2, lambda transport: make(transport, 10, np.float32))
    assert all("do not see the same memory" in str(error) for error in errors)


@pytest.mark.parametrize("x", [np.zeros(9, np.float32), np.zeros(10, np.float64)])
def test_an_array_that_does_not_fit_is_refused(on_ranks, x):
    with pytest.raises((ValueError, TypeError), match="deposit: "):
        on_ranks(1, lambda transport: make(transport, 10, np.float32).start(x))
