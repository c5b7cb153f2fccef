"""Sums from GPU to GPU: hpcps's own code on devices that are none, with what stands in for NCCL."""

from __future__ import annotations

import threading
import time

import nccl_on_cpu
import numpy as np
import pytest
from hpcps_kernels.gpu._nccl import Nccl
from on_cpu import OnCpu
from trainings import DENSE, OF_MLP, as_on_a_cpu, changed, of_sparse, told, train

from hpcps import joining, nccl
from hpcps.comm.local import LocalWorld
from hpcps.device import Gpu
from hpcps.errors import CommError, CommTimeout, ConfigError, PeerLost

BY_NCCL = "all-reduce: NCCL, from GPU to GPU"


@pytest.fixture
def linked(gpus, monkeypatch):
    """So many GPUs with NCCL between them, and ranks that count as processes."""

    def use(count: int) -> list[OnCpu]:
        devices = gpus(count)
        for device in devices:
            device.nccl_module = nccl_on_cpu
        return devices

    nccl_on_cpu.reset()
    monkeypatch.setattr(nccl, "process", threading.get_ident)
    return use


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("kind", DENSE)
def test_auto_takes_it_where_each_rank_has_a_gpu(tmp_path, data, linked, kind, ranks) -> None:
    linked(3)
    summary = as_on_a_cpu(tmp_path, told(data, kind, *[OF_MLP] * (kind == "mlp")), ranks)
    assert summary["exchange"].startswith(BY_NCCL)
    (ends,) = nccl_on_cpu.MADE.values()
    assert [len(one.sums) for one in ends] == [summary["steps"]] * ranks


@pytest.mark.parametrize(
    "settings",
    [
        ("optimizer.clip_norm=0.1",),
        ("train.dtype=float64", "train.algorithm=nccl"),
        ("optimizer.kind=adam", "optimizer.momentum=0", "optimizer.epsilon=0.1"),
    ],
    ids=" ".join,
)
def test_ways_to_train(tmp_path, data, linked, settings) -> None:
    linked(2)
    summary = as_on_a_cpu(tmp_path, told(data, "mlp", OF_MLP, "run.device=cuda", *settings), 2)
    assert summary["exchange"] == BY_NCCL


def test_buckets_are_summed_while_others_are_computed(tmp_path, data, linked, monkeypatch) -> None:
    linked(3)
    monkeypatch.setattr(joining, "BUCKET_BYTES", 8)
    summary = as_on_a_cpu(tmp_path, told(data, "mlp", OF_MLP), 3)
    assert summary["exchange"] == f"{BY_NCCL}, 3 buckets"


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        (("train.strategy=ring",), "all-gather"),
        (("server.threshold=0.001",), "push (threshold 0.001) to shards of all ranks"),
    ],
)
def test_rows_of_tables_still_pass_through_the_host(tmp_path, data, linked, settings, how) -> None:
    linked(2)
    summary = as_on_a_cpu(tmp_path, of_sparse(data, "embedding", *settings), 2)
    assert summary["exchange"].startswith(f"{BY_NCCL}; rows of tables: {how}")


@pytest.mark.parametrize("settings", [("train.reproducible=true",), ("compress.kind=int8",), ("train.algorithm=ring",)])
def test_auto_leaves_it_where_sums_are_others(tmp_path, data, linked, settings) -> None:
    linked(2)
    summary, _ = train(tmp_path / "run", told(data, "softmax", "run.device=cuda", *settings), 2)
    assert "through the host's memory" in summary["exchange"]
    assert not nccl_on_cpu.MADE


def one_gpu(monkeypatch, linked) -> None:
    linked(1)


def one_process(monkeypatch, linked) -> None:
    linked(2)
    monkeypatch.setattr(nccl, "process", lambda: 17)


def not_everywhere(monkeypatch, linked) -> None:
    linked(2)[1].nccl_module = None


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        (one_gpu, r"ranks 0 and 1 share the GPU of \S+ at 0000:00:00\.0, and each needs its own"),
        (one_process, r"ranks 0 and 1 share process \S+ 17, and each needs its own"),
        (not_everywhere, r"rank 1: CuPy finds no NCCL: pip install nvidia-nccl-cu13"),
    ],
)
def test_where_it_cannot_be_auto_does_without_and_asking_for_it_is_an_error(
    tmp_path, data, linked, monkeypatch, missing, says
) -> None:
    missing(monkeypatch, linked)
    asked = told(data, "softmax", "run.device=cuda")
    summary, _ = train(tmp_path / "auto", asked, 2)
    assert "through the host's memory" in summary["exchange"]
    with pytest.raises(ConfigError, match=rf"^train\.algorithm = 'nccl': {says}; use 'auto'$") as caught:
        train(tmp_path / "asked", changed(asked, "train", algorithm="nccl"), 2)
    assert caught.value.exit_status == 2
    assert not (tmp_path / "asked").exists()
    alone, _ = train(tmp_path / "alone", changed(asked, "train", algorithm="nccl"), 1)
    assert alone["exchange"] == "all-reduce: none"


def on_ranks(count: int, work, timeout_s: float) -> list[object]:
    """What `work` gives or raises on each rank."""
    world, found = LocalWorld(count, timeout_s), [None] * count

    def run(transport) -> None:
        try:
            found[transport.rank] = work(transport)
        except Exception as error:
            found[transport.rank] = error

    threads = [threading.Thread(target=run, args=(one,)) for one in world.transports()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def sum_twice(transport, devices: list[OnCpu]) -> list[float]:
    gpu = Gpu(Table(devices[transport.rank]))
    sums = nccl.GpuSums(gpu, transport)
    x = gpu.put(np.full(5, transport.rank + 1.0))
    for _ in range(2):
        sum_ = sums.prepare(x)()
        sum_.wait()
    return gpu.read(x).tolist()


class Table:
    """As much of a table of kernels as there has to be."""

    def __init__(self, device: OnCpu) -> None:
        self.device = device


def test_all_get_the_sum(linked) -> None:
    devices = linked(3)
    assert on_ranks(3, lambda transport: sum_twice(transport, devices), 30) == [[18.0] * 5] * 3


def test_a_peer_that_does_not_sum_is_waited_for_no_longer_than_the_timeout(linked) -> None:
    devices = linked(3)
    nccl_on_cpu.ABSENT.add(1)
    first, _, last = on_ranks(3, lambda transport: sum_twice(transport, devices), 0.3)
    assert type(first) is type(last) is CommTimeout
    assert str(first) == (
        "rank 0 waited 0.3 s to sum 5 numbers with ranks 1, 2, by NCCL; a longer wait is run.timeout_s"
    )
    (ends,) = nccl_on_cpu.MADE.values()
    assert [one.is_aborted for one in sorted(ends, key=lambda one: one.rank)][::2] == [True, True]


def test_what_nccl_knows_of_a_peer_ends_the_wait(linked) -> None:
    devices = linked(2)
    nccl_on_cpu.ABSENT.add(1)
    nccl_on_cpu.BROKEN.append("NCCL_ERROR_SYSTEM_ERROR: remote process exited or there was a network error")
    (first, _) = on_ranks(2, lambda transport: sum_twice(transport, devices), 30)
    assert type(first) is PeerLost
    assert str(first).startswith("rank 0: NCCL could not sum 5 numbers with rank 1: NCCL_ERROR_SYSTEM_ERROR: remote")


def test_what_the_transport_knows_ends_it_too(linked) -> None:
    devices = linked(2)
    nccl_on_cpu.ABSENT.add(1)

    def work(transport):
        if transport.rank == 1:
            nccl.GpuSums(Gpu(Table(devices[1])), transport)
            transport.abort(CommError("out of order"))
            return None
        return sum_twice(transport, devices)

    first, _ = on_ranks(2, work, 30)
    assert type(first) is PeerLost
    assert str(first) == "rank 1 failed: out of order"
    (ends,) = nccl_on_cpu.MADE.values()
    own = min(ends, key=lambda one: one.rank)
    late = time.monotonic() + 10
    while not own.is_aborted and time.monotonic() < late:  # by the thread that has made it, if nobody waited any more
        time.sleep(0.01)
    assert own.is_aborted


def test_a_communicator_that_is_made_when_nobody_waits_any_more_is_aborted(linked, monkeypatch) -> None:
    devices = linked(2)
    real = Nccl.communicator

    def late(self, size, unique_id, rank):
        end = real(self, size, unique_id, rank)
        if rank == 0:
            time.sleep(1)
        return end

    monkeypatch.setattr(Nccl, "communicator", late)

    def work(transport):
        sums = nccl.GpuSums(Gpu(Table(devices[transport.rank])), transport)
        time.sleep(2)
        return sums

    found = on_ranks(2, work, 0.2)
    assert [type(one) for one in found] == [CommTimeout, nccl.GpuSums]
    (ends,) = nccl_on_cpu.MADE.values()
    assert [one.is_aborted for one in sorted(ends, key=lambda one: one.rank)] == [True, False]


def test_a_peer_that_does_not_come_to_the_communicator_is_waited_for_no_longer(linked, monkeypatch) -> None:
    devices = linked(2)
    real = Nccl.communicator

    def late(self, size, unique_id, rank):
        if rank == 1:
            time.sleep(2)
        return real(self, size, unique_id, rank)

    monkeypatch.setattr(Nccl, "communicator", late)
    found = on_ranks(2, lambda transport: sum_twice(transport, devices), 0.2)
    assert {type(error) for error in found} == {CommTimeout}
    assert str(found[0]).startswith("rank 0 waited 0.2 s to make a communicator with rank 1, by NCCL;")
    time.sleep(2)  # until the thread of rank 1 has come, and both have left


def test_what_nccl_says_is_one_line(linked, monkeypatch) -> None:
    def broken(*given: object) -> None:
        raise nccl_on_cpu.NcclError("NCCL_ERROR_UNHANDLED_CUDA_ERROR: unhandled cuda error\n(run with NCCL_DEBUG=INFO)")

    devices = linked(2)
    for method in ("communicator", "unique_id"):
        with monkeypatch.context() as patch:
            patch.setattr(Nccl, method, broken)
            found = on_ranks(2, lambda transport: sum_twice(transport, devices), 30)
        assert all(type(error) is CommError for error in found)
        assert str(found[0]) == (
            "rank 0: NCCL: NCCL_ERROR_UNHANDLED_CUDA_ERROR: unhandled cuda error (run with NCCL_DEBUG=INFO); "
            "train.algorithm = 'ring' sums in the host's memory"
        )


def test_a_communicator_ends_with_what_it_was_for(tmp_path, data, linked) -> None:
    linked(2)
    train(tmp_path / "run", told(data, "softmax", "run.device=cuda"), 2)
    (ends,) = nccl_on_cpu.MADE.values()
    deadline = time.monotonic() + 30
    while not all(one.is_aborted for one in ends) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(one.is_aborted for one in ends)
