"""The light thread pool: order, real concurrency, errors, and nothing left running."""

import threading

import pytest

from hpcps.threads import Threads


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request):
    pool = Threads(request.param)
    yield pool
    pool.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "hpcps help"]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 100])
def test_results_come_in_order_each_once(threads, count):
    done = []

    def work(item):
        done.append(item)
        return item * item

    for _ in range(20):
        assert list(threads.each(work, range(count))) == [item * item for item in range(count)]
    assert sorted(done) == sorted(20 * list(range(count)))


def test_as_many_pieces_run_at_a_time_as_there_are_threads(threads):
    meeting = threading.Barrier(threads.count)
    assert len(list(threads.each(lambda _: meeting.wait(20), range(3 * threads.count)))) == 3 * threads.count


def test_a_result_is_given_out_before_the_last_piece_is_finished():
    pool = Threads(2)
    last_may_end = threading.Event()

    def work(item):
        if item == 1:
            assert last_may_end.wait(20)
        return item

    results = pool.each(work, range(2))
    # The caller takes one piece and the helper the other; whoever has piece 0 finishes it at once.
    timer = threading.Timer(0.2, last_may_end.set)
    timer.start()
    assert list(results) == [0, 1]
    pool.close()


@pytest.mark.parametrize("bad", [0, 3, 9])
def test_the_first_error_is_raised_and_nobody_works_on(threads, bad):
    running = []

    def work(item):
        running.append(item)
        if item >= bad:
            raise ValueError(f"piece {item}")
        return item

    with pytest.raises(ValueError, match=f"^piece {bad}$"):
        list(threads.each(work, range(10)))
    assert list(threads.each(lambda item: item, range(5))) == list(range(5))
    assert len(running) <= bad + 1 + 2 * threads.count  # what had been begun


def test_a_piece_that_does_not_return_holds_up_no_error():
    pool = Threads(2)
    ends = threading.Event()

    def work(item):
        if threading.current_thread().name == "hpcps help":
            ends.wait(20)
            return item
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        list(pool.each(work, range(3)))
    pool.close(wait=False)
    ends.set()
    pool.close()
