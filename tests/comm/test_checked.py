"""Checked messages: nothing changes while all is well, and every kind of damage is named."""

import numpy as np
import pytest

import hpcps
from hpcps import launch
from hpcps.comm import doubling, ring
from hpcps.comm.checked import VARIABLE, CheckedTransport, if_asked
from hpcps.comm.meeting import Meeting
from hpcps.config import from_tree
from hpcps.errors import CommError, CommTimeout

CONFIG = {"data": {"path": "digits"}, "model": {"kind": "softmax"}, "train": {"epochs": 1, "reproducible": True}}


def add_into(out, x):
    out += x


@pytest.mark.parametrize("ranks", range(1, 9))
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_collectives_are_as_without(on_ranks, ranks, dtype):
    def body(plain):
        transport = CheckedTransport(plain)
        group = transport.group(range(ranks)[::-1])
        for count in (0, 1, 7, 200):
            arrays = [(np.arange(count) * ranks + transport.rank).astype(dtype) for _ in range(3)]
            tickets = [
                ring.RingAllreduce(transport, add_into, segment_bytes=256).start(arrays[0]),
                ring.RingAllreduce(group, add_into).start(arrays[1]),
                doubling.DoublingAllreduce(transport, add_into).start(arrays[2]),
            ]
            for number in np.random.default_rng(transport.rank).permutation(3):
                tickets[number].wait()
            total = np.arange(count) * ranks**2 + ranks * (ranks - 1) // 2
            assert all(np.array_equal(x, total.astype(dtype)) for x in arrays)
        transport.barrier()
        return Meeting(transport).gather(np.arange(transport.rank)).tolist()

    assert on_ranks(ranks, body) == [[i for rank in range(ranks) for i in range(rank)]] * ranks


def test_one_of_several_and_a_buffer_longer_than_its_message(on_ranks):
    def body(plain):
        transport = CheckedTransport(plain)
        if transport.rank:
            if transport.rank == 2:
                transport.wait(transport.isend(np.full(3, 2.0), 0, 5))
            transport.barrier()
            return
        buffers = [np.zeros(4), np.zeros(4)]
        tickets = [transport.irecv(buffer, source, 5) for source, buffer in zip((1, 2), buffers, strict=True)]
        assert transport.wait_any(tickets) == 1
        assert tickets[1].done()
        assert not tickets[0].done()
        assert buffers[1].tolist() == [2, 2, 2, 0]
        transport.barrier()
        transport.timeout_s = 0.05
        with pytest.raises(CommTimeout, match=r"rank 0 waited 0\.05 s to receive from rank 1"):
            transport.wait(tickets[0])

    on_ranks(3, body)


def flipped(buffer):
    damaged = buffer.copy()
    damaged.view(np.uint8)[buffer.nbytes // 2] ^= 1 << 3
    return damaged


@pytest.mark.parametrize("wait", ["wait", "wait_any"])
def test_a_flipped_bit_is_noticed(on_ranks, wait):
    def body(plain):
        transport = CheckedTransport(plain)
        if transport.rank == 1:
            send = plain.isend
            plain.isend = lambda buffer, to, tag: send(flipped(buffer) if buffer.nbytes == 80 else buffer, to, tag)
            transport.wait(transport.isend(np.arange(10.0), 0, 7))
            return
        ticket = transport.irecv(np.empty(10), 1, 7)
        transport.wait(ticket) if wait == "wait" else transport.wait_any([ticket])

    expected = (
        r"rank 0 received a wrong message from rank 1, tag 7: the checksum of its 80 bytes is \w{8}, at the .* \w{8}"
    )
    with pytest.raises(CommError, match=expected):
        on_ranks(2, body)


@pytest.mark.parametrize("is_in_group", [False, True])
def test_a_flipped_bit_inside_a_collective_is_noticed(on_ranks, is_in_group):
    def body(plain):
        transport = CheckedTransport(plain).group([1, 2, 0]) if is_in_group else CheckedTransport(plain)
        if plain.rank == 1:
            inner, send = transport.inner, transport.inner.isend
            inner.isend = lambda buffer, to, tag: send(flipped(buffer) if buffer.nbytes > 24 else buffer, to, tag)
        ring.allreduce(transport, np.arange(100.0), add_into)

    _, errors = on_ranks.run(3, body)
    name = 0 if is_in_group else 1
    assert type(errors[0]) is CommError
    assert f"received a wrong message from rank {name}, tag " in str(errors[0])


def test_a_message_that_was_lost_is_noticed(on_ranks):
    def body(plain):
        transport = CheckedTransport(plain)
        if transport.rank == 0:
            x = np.empty(3)
            transport.wait(transport.irecv(x, 1, 7))
            assert x.tolist() == [0, 0, 0]
            transport.wait(transport.irecv(x, 1, 7))
            return
        sent = [transport.isend(np.full(3, 0.0), 0, 7)]
        send = plain.isend
        plain.isend = lambda buffer, to, tag: sent[0]  # goes nowhere
        transport.isend(np.full(3, 1.0), 0, 7)
        plain.isend = send
        transport.wait(transport.isend(np.full(3, 2.0), 0, 7))

    with pytest.raises(CommError, match="from rank 1, tag 7: its number is 3, expected was 2"):
        on_ranks(2, body)


@pytest.mark.parametrize(("asking", "expected"), [(2, "threads, checked"), (3, "threads")])
def test_it_is_on_for_all_ranks_where_one_asks(on_ranks, asking, expected):
    def body(transport):
        environment = {VARIABLE: "1"} if transport.rank == asking else {VARIABLE: "0"}
        return if_asked(transport, environment).description

    assert on_ranks(3, body) == [expected] * 3


def test_the_environment_switches_it_on(monkeypatch, tmp_path):
    assert not isinstance(launch.world(), CheckedTransport)
    plain = hpcps.train(from_tree(CONFIG), ranks=2, out=tmp_path / "plain").summary
    monkeypatch.setenv(VARIABLE, "1")
    assert isinstance(launch.world(), CheckedTransport)
    for strategy in ("ring", "server"):
        tree = {**CONFIG, "train": {**CONFIG["train"], "strategy": strategy}}
        found = hpcps.train(from_tree(tree), ranks=2, out=tmp_path / strategy).summary
        assert (plain["transport"], found["transport"]) == ("threads", "threads, checked")
        assert found["params_sha256"] == plain["params_sha256"]
