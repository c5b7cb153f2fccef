"""Messages between threads: order, groups, and that every wait ends."""

import numpy as np
import pytest

from hpcps.comm import transport as waits
from hpcps.comm.meeting import Meeting
from hpcps.errors import CommError, CommTimeout, DataError, HpcpsError, PeerLost
from hpcps.together import agree


def test_messages_of_one_tag_come_in_order_and_tags_do_not_mix(on_ranks):
    def body(transport):
        if transport.rank == 0:
            sent = [transport.isend(np.array([i]), 1, tag) for i in range(5) for tag in (7, 8)]
            transport.wait(*sent)
            return None
        found = {}
        for tag in (8, 7):
            buffers = [np.empty(1, int) for _ in range(5)]
            transport.wait(*[transport.irecv(buffer, 0, tag) for buffer in buffers])
            found[tag] = [int(buffer[0]) for buffer in buffers]
        return found

    assert on_ranks(2, body)[1] == {8: list(range(5)), 7: list(range(5))}


def test_a_message_may_be_shorter_than_the_buffer_but_not_longer(on_ranks):
    def body(count):
        def run(transport):
            if transport.rank == 0:
                transport.wait(transport.isend(np.ones(count), 1, 5))
            else:
                buffer = np.zeros(4)
                transport.wait(transport.irecv(buffer, 0, 5))
                return buffer.sum()
            return None

        return run

    assert on_ranks(2, body(3))[1] == 3
    with pytest.raises(CommError, match="a message of 40 bytes came for a buffer of 32 bytes"):
        on_ranks(2, body(5))


def test_a_missing_peer_is_named_when_time_is_up(on_ranks):
    def body(transport):
        if transport.rank == 2:
            transport.wait(transport.irecv(np.empty(1), 1, 5))

    with pytest.raises(CommTimeout, match=r"rank 2 waited 0\.05 s to receive from rank 1; .*run\.timeout_s"):
        on_ranks(3, body, timeout_s=0.05)


def test_wait_any_gives_the_one_that_came_and_names_all_that_did_not(on_ranks):
    def body(transport):
        if transport.rank != 0:
            if transport.rank == 2:
                transport.wait(transport.isend(np.full(1, 2.0), 0, 5))
            return None
        buffers = [np.empty(1), np.empty(1), np.empty(1)]
        tickets = [transport.irecv(buffer, source, 5) for source, buffer in zip((1, 2, 3), buffers, strict=True)]
        assert transport.wait_any(tickets) == 1
        transport.wait_any([tickets[0], tickets[2]])
        return None

    with pytest.raises(CommTimeout, match=r"rank 0 waited .* ranks 1, 3"):
        on_ranks(4, body, timeout_s=0.2)


def test_a_failing_rank_ends_the_waits_of_all_others(on_ranks):
    def body(transport):
        if transport.rank == 1:
            raise DataError("x.csv: line 3: no")
        transport.wait(transport.irecv(np.empty(1), 1, 5))

    _, errors = on_ranks.run(4, body)
    assert isinstance(errors[0], DataError)
    for error in errors[1:]:
        assert isinstance(error, PeerLost)
        assert str(error) == "rank 1 failed: x.csv: line 3: no"


def test_groups_renumber_and_do_not_hear_each_other(on_ranks):
    def body(transport):
        if transport.rank == 3:
            return None
        group = transport.group([2, 0, 1])
        same = transport.group([2, 0, 1])
        x = np.zeros(1, int)
        wanted = group.irecv(x, (group.rank + 1) % 3, 5)
        other = same.isend(np.array([-1]), (group.rank - 1) % 3, 5)
        sent = group.isend(np.array([transport.rank]), (group.rank - 1) % 3, 5)
        group.wait(wanted, sent)
        y = np.zeros(1, int)
        same.wait(same.irecv(y, (group.rank + 1) % 3, 5), other)
        return group.rank, int(x[0]), int(y[0])

    assert on_ranks(4, body) == [(1, 1, -1), (2, 2, -1), (0, 0, -1), None]


@pytest.mark.parametrize("ranks", range(1, 9))
def test_no_rank_leaves_a_barrier_before_all_have_come(on_ranks, ranks):
    arrived = []

    def body(transport):
        arrived.append(transport.rank)
        transport.barrier()
        return len(arrived)

    assert on_ranks(ranks, body) == [ranks] * ranks


def test_a_barrier_that_one_rank_misses_times_out(on_ranks):
    def body(transport):
        if transport.rank != 1:
            transport.barrier()

    with pytest.raises(CommTimeout, match="rank 1"):
        on_ranks(2, body, timeout_s=0.05)


def test_buffers_begin_at_a_cache_line(on_ranks):
    [addresses] = on_ranks(1, lambda one: [one.empty(n, np.float32).ctypes.data % 64 for n in (1, 17, 1000)])
    assert addresses == [0, 0, 0]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_gather_joins_in_rank_order(on_ranks, ranks):
    def body(transport):
        return Meeting(transport).gather(np.full(transport.rank, transport.rank, np.int64)).tolist()

    expected = [rank for rank in range(ranks) for _ in range(rank)]
    assert on_ranks(ranks, body) == [expected] * ranks


def test_once_is_made_once(on_ranks):
    made = []

    def body(transport):
        def make():
            made.append(transport.rank)
            return np.arange(5, dtype=np.int32)

        return Meeting(transport).once(make)

    for array in on_ranks(3, body):
        assert array.dtype == np.int32
        assert array.tolist() == [0, 1, 2, 3, 4]
    assert made == [0]


@pytest.mark.parametrize("culprits", [{0}, {2}, {1, 2}])
def test_one_ranks_error_is_raised_on_all_with_its_class_and_text(on_ranks, culprits):
    def body(transport):
        def work():
            if transport.rank in culprits:
                raise DataError(f"file{transport.rank}.csv: line 1: ü\nx")

        try:
            agree(Meeting(transport), work)
        except HpcpsError as error:
            return type(error), str(error), error.known_to_all
        return None

    assert on_ranks(3, body) == [(DataError, f"file{min(culprits)}.csv: line 1: ü\nx", True)] * 3


def test_an_error_of_once_is_raised_on_all(on_ranks):
    def make():
        raise DataError("gone")

    _, errors = on_ranks.run(3, lambda transport: Meeting(transport).once(make))
    assert [type(error) for error in errors] == [DataError] * 3


def test_time_in_which_the_process_was_stopped_does_not_count(monkeypatch):
    now = iter([0.0, 0.5, 1.0, 101.0, 101.5, 102.5])
    monkeypatch.setattr(waits.time, "monotonic", lambda: next(now))
    patience = waits.Patience()
    assert [patience.waited_s() for _ in range(5)] == [0.5, 1.0, 1.0, 1.5, 2.5]
