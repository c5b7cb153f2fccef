"""Every algorithm of all-reduce on ranks that are threads, on one node and on several that are made up."""

import time

import hpcps_kernels
import numpy as np
import pytest

import hpcps
from hpcps.collectives.choice import Choice
from hpcps.collectives.engine import Engine
from hpcps.collectives.node import SCRATCH_BYTES
from hpcps.errors import CommError, CommTimeout, ConfigError

KERNELS = hpcps_kernels.load("cpu")
LAYOUTS = {
    "one node": lambda ranks: ["a"] * ranks,
    "a node each": lambda ranks: [str(rank) for rank in range(ranks)],
    "in turn": lambda ranks: ["ab"[rank % 2] for rank in range(ranks)],
    "uneven": lambda ranks: ["a" if rank < (2 * ranks + 2) // 3 else "b" for rank in range(ranks)],
}
ALGORITHMS = {
    "one node": ("auto", "memory", "ring", "doubling"),
    "a node each": ("auto", "ring", "doubling"),
    "in turn": ("auto", "ring", "doubling", "hierarchical"),
    "uneven": ("auto", "hierarchical"),
}
CASES = [(layout, algorithm) for layout, algorithms in ALGORITHMS.items() for algorithm in algorithms]
DTYPES = ("float32", "float64", "int64", "float16", "bfloat16")


def lengths(ranks, itemsize):
    return (0, 1, ranks - 1, ranks, ranks + 1, 1001, SCRATCH_BYTES // itemsize + 1, 100_003)


def bits(values, name):
    """Whole numbers in a dtype, as the engine takes them."""
    if name == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(name).view(np.uint16) if name == "float16" else values.astype(name)


def given(rank, ranks, count, name):
    """Numbers whose sum over the ranks every dtype holds exactly."""
    top = 120 if name == "bfloat16" else 1000
    return bits((np.arange(count) * (rank + 1)) % (top // ranks), name)


def total(ranks, count, name):
    top = 120 if name == "bfloat16" else 1000
    return bits(sum((np.arange(count) * (rank + 1)) % (top // ranks) for rank in range(ranks)), name)


@pytest.mark.parametrize("ranks", range(1, 9))
@pytest.mark.parametrize(("layout", "algorithm"), CASES)
def test_sums_of_every_length_and_dtype(on_ranks, ranks, layout, algorithm):
    def body(transport):
        try:
            engine = Engine(transport, KERNELS, Choice(algorithm))
        except ConfigError as error:
            return str(error)
        for name in DTYPES:
            format = name if name.endswith("16") else "own"
            for count in lengths(ranks, np.dtype(bits(np.zeros(1), name).dtype).itemsize):
                expected = total(ranks, count, name)
                private = given(transport.rank, ranks, count, name)
                visible = transport.empty(count, private.dtype)
                for x in (private.copy(), visible):
                    x[:] = private
                    engine.allreduce(x, format)
                    assert np.array_equal(x, expected), (name, count)
                tickets = []
                for x in (private, visible):
                    x[:] = given(transport.rank, ranks, count, name)
                    tickets.append((engine.start(x, format), x))
                for ticket, x in reversed(tickets) if transport.rank % 2 else tickets:
                    ticket.wait()
                    assert ticket.done()
                    assert np.array_equal(x, expected), (name, count)
        return ""

    for told in on_ranks(ranks, body, nodes=LAYOUTS[layout](ranks)):
        assert told == "" or (algorithm == "hierarchical" and ranks < 3 and "several nodes" in told)


@pytest.mark.parametrize(("layout", "algorithm"), CASES)
@pytest.mark.parametrize("ranks", [3, 5, 8])
@pytest.mark.parametrize("name", DTYPES)
def test_the_same_bits_on_all_ranks(on_ranks, ranks, layout, algorithm, name):
    def body(transport):
        engine = Engine(transport, KERNELS, Choice(algorithm))
        x = bits(np.random.default_rng(transport.rank).normal(size=20_011), name)
        engine.allreduce(x, name if name.endswith("16") else "own")
        return x

    found = on_ranks(ranks, body, nodes=LAYOUTS[layout](ranks))
    assert all(np.array_equal(found[0], x) for x in found[1:])


@pytest.mark.parametrize("layout", ["one node", "in turn"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 7, 30_011])
def test_reduce_scatter_and_all_gather(on_ranks, layout, ranks, count):
    middle = sorted(np.random.default_rng(count).integers(0, count + 1, ranks - 1).tolist())

    def body(transport):
        for bounds in (None, [0, *middle, count]):
            x = given(transport.rank, ranks, count, "float32")
            own = hpcps.reduce_scatter(x, transport, bounds)
            assert np.array_equal(x[own], total(ranks, count, "float32")[own])
            x[: own.start] = -1
            x[own.stop :] = -1
            assert hpcps.all_gather(x, transport, bounds) is x
            assert np.array_equal(x, total(ranks, count, "float32"))

    on_ranks(ranks, body, nodes=LAYOUTS[layout](ranks))


@pytest.mark.parametrize("layout", ["one node", "in turn", "a node each"])
def test_many_tickets_waited_for_out_of_order(on_ranks, layout):
    def body(transport):
        order = np.random.default_rng(transport.rank).permutation(20)
        xs = [np.full(10 + 997 * (number % 4), float(transport.rank + number)) for number in range(20)]
        tickets = [hpcps.start_allreduce(x, transport) for x in xs]
        for number in order:
            tickets[number].wait()
            assert (xs[number] == 5 * number + 10).all()

    on_ranks(5, body, nodes=LAYOUTS[layout](5))


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("layout", ["one node", "in turn"])
def test_collectives_that_begin_when_they_are_waited_for(on_ranks, layout, asks):
    """Beside others that are under way, and again and again; asking begins them as waiting does."""

    def body(transport):
        engine = Engine(transport, KERNELS)
        x, beside = transport.empty(10, np.float32), transport.empty(5000, np.float32)
        start, other = engine.prepare_all_gather(x, is_late=True), engine.prepare(beside)
        for turn in range(5):
            x[:], beside[:] = -1, transport.rank
            x[engine.chunk(10)] = turn * 10 + transport.rank
            first = other() if turn % 2 else None
            gathered = start()
            while asks and not gathered.done():
                time.sleep(0)
            gathered.wait()
            assert np.array_equal(x, turn * 10 + np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2]))
            if first is not None:
                first.wait()
                assert np.array_equal(beside, np.full(5000, 3))
            if layout == "one node":
                start()
                with pytest.raises(CommError, match="started again"):
                    start()
                start.__self__.wait()
        return True

    assert all(on_ranks(3, body, nodes=LAYOUTS[layout](3)))


def test_arrays_that_only_some_ranks_made_visible(on_ranks):
    def body(transport):
        visible = transport.empty(100_000, np.float32)
        x = visible if transport.rank == 1 else np.empty(100_000, np.float32)
        x[:] = transport.rank
        hpcps.allreduce(x, transport)
        assert (x == 3).all()

    on_ranks(3, body)


def test_ranks_that_do_not_come_are_named(on_ranks):
    def body(transport):
        hpcps.allreduce(np.ones(1), transport)
        if transport.rank == 1:
            hpcps.allreduce(np.ones(10), transport)

    with pytest.raises(CommTimeout, match=r"rank 1 waited 0\.3 s for rank\(s\) 0, 2 to bring their arrays"):
        on_ranks(3, body, timeout_s=0.3)


def test_ranks_that_call_different_collectives_are_told(on_ranks):
    def body(transport):
        hpcps.allreduce(np.ones(10 + transport.rank), transport)

    _, errors = on_ranks.run(2, body)
    assert any(
        isinstance(error, CommError) and "called different collectives: here sum of 1" in str(error) for error in errors
    )


@pytest.mark.parametrize(
    ("algorithm", "layout", "reason"),
    [
        ("memory", "a node each", "do not share memory"),
        ("hierarchical", "one node", "no several nodes"),
        ("mpi", "one node", "do not talk by MPI"),
    ],
)
def test_algorithms_that_cannot_be_used_are_refused(on_ranks, algorithm, layout, reason):
    _, errors = on_ranks.run(2, lambda t: Engine(t, KERNELS, Choice(algorithm)), nodes=LAYOUTS[layout](2))
    assert all(isinstance(error, ConfigError) and reason in str(error) for error in errors)


def test_a_table_decides(on_ranks):
    def body(transport):
        engine = Engine(transport, KERNELS, Choice("auto", ((100, "doubling"), (1000, "mpi"), (2000, "ring"))))
        assert [engine.choice.pick(size, engine.layout) for size in (100, 101, 2000, 2001)] == [
            "doubling",
            "ring",
            "ring",
            "memory",
        ]
        for count in (3, 200, 1000):
            x = np.ones(count)
            engine.allreduce(x)
            assert (x == 2).all()

    on_ranks(2, body)
