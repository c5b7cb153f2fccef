"""Recursive doubling on threads: closed-form totals and the same bits, also where the rank count is no power of two."""

import numpy as np
import pytest

from hpcps.comm import doubling
from hpcps.errors import CommTimeout

SIZES = [0, 1, 2, 7, 64, 1000]
DTYPES = ["float32", "float64", "int64"]


def add_into(out, x):
    out += x


@pytest.mark.parametrize("ranks", range(1, 10))
@pytest.mark.parametrize("dtype", DTYPES)
def test_allreduce(on_ranks, ranks, dtype):
    def body(transport):
        found = []
        for count in SIZES:
            x = (np.arange(count) * ranks + transport.rank).astype(dtype)
            doubling.allreduce(transport, x, add_into)
            found.append(x)
        return found

    for count, results in zip(SIZES, zip(*on_ranks(ranks, body), strict=True), strict=True):
        total = np.arange(count) * ranks * ranks + ranks * (ranks - 1) // 2
        for result in results:
            assert np.array_equal(result, total.astype(dtype))


@pytest.mark.parametrize("ranks", range(1, 10))
def test_all_ranks_get_the_same_bits_where_addition_rounds(on_ranks, ranks):
    def body(transport):
        x = np.random.default_rng(transport.rank).normal(size=1001).astype(np.float32)
        doubling.DoublingAllreduce(transport, add_into).start(x).wait()
        return x.tobytes()

    assert len(set(on_ranks(ranks, body))) == 1


def test_messages_are_few(on_ranks):
    """log2 P for each of the ranks that double; one each way for one that is folded."""

    def body(transport):
        sent = []
        plain = transport.isend
        transport.isend = lambda buffer, to, tag: sent.append(to) or plain(buffer, to, tag)
        doubling.allreduce(transport, np.zeros(5), add_into)
        return sent

    assert on_ranks(4, body) == [[1, 2], [0, 3], [3, 0], [2, 1]]
    assert on_ranks(5, body) == [[1], [2, 3, 0], [1, 4], [4, 1], [3, 2]]


def test_a_peer_that_does_not_come_is_named(on_ranks):
    def body(transport):
        if transport.rank != 3:
            doubling.allreduce(transport, np.zeros(4), add_into)

    _, errors = on_ranks.run(4, body, timeout_s=0.2)
    assert isinstance(errors[0], CommTimeout)
    assert "from rank 3;" in str(errors[0]) or "from rank 2;" in str(errors[0])
