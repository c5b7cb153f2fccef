"""Training with DistributedDataParallel, plain and with the hook; each rank is started by test_hook.py.

``python training.py HOW RANK SIZE STORE``. Rank 0 ends with "done".
"""

import os
import sys
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hpcps
import hpcps.torch
from hpcps.comm.local import LocalWorld
from hpcps.errors import CommTimeout, ConfigError, ModelError, PeerLost

STEPS = 6
BATCH = 24


def net(dtype=torch.float32):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(20, 33), nn.ReLU(), nn.Linear(33, 17), nn.ReLU(), nn.Linear(17, 5)).to(dtype)


def train(model, dtype=torch.float32):
    """The losses of this rank's samples, step by step."""
    rank, size = dist.get_rank(), dist.get_world_size()
    samples = torch.randn(BATCH, 20, generator=torch.Generator().manual_seed(2)).to(dtype)
    labels = torch.arange(BATCH) % 5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        loss = nn.functional.cross_entropy(model(samples[rank::size]), labels[rank::size])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def flat(model):
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def the_same_on_all(values):
    """The same bits on every rank."""
    found = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(found, values)
    return all(torch.equal(one.view(torch.uint8), values.view(torch.uint8)) for one in found)


def compare(transport=None):
    """Plain DDP and DDP with the hook learn the same, whatever DDP's options are."""
    for options in ({}, {"bucket_cap_mb": 0.001}, {"gradient_as_bucket_view": True, "static_graph": True}):
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 0.05)):
            plain = DistributedDataParallel(net(dtype), **options)
            hooked = DistributedDataParallel(net(dtype), **options)
            used = hpcps.torch.use(hooked, transport)
            assert used.size == dist.get_world_size()
            expected, found = train(plain, dtype), train(hooked, dtype)
            assert expected[-1] < expected[0]
            assert found == pytest.approx(expected, rel=tolerance)
            assert the_same_on_all(flat(hooked))
            assert not torch.equal(flat(hooked), flat(net(dtype)))
            torch.testing.assert_close(flat(hooked), flat(plain), rtol=10 * tolerance, atol=10 * tolerance)


def average():
    """The very gradients: the mean over the ranks, once rounded where it is summed in float32; none in no_sync."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        model = DistributedDataParallel(nn.Linear(7, 1, bias=False).to(dtype))
        hpcps.torch.use(model)
        own = torch.arange(7).to(dtype) * 3 + rank
        with model.no_sync():
            model(own[None]).sum().backward()
        assert torch.equal(model.module.weight.grad[0], own)
        model.zero_grad()
        model(own[None]).sum().backward()
        expected = (torch.arange(7) * 3 + (size - 1) / 2).to(dtype)
        torch.testing.assert_close(model.module.weight.grad[0], expected)


def refused():
    """What cannot be summed is refused with the reason, on all ranks alike."""
    with pytest.raises(TypeError, match="DistributedDataParallel model, not a Linear"):
        hpcps.torch.use(nn.Linear(1, 1))
    with pytest.raises(ModelError, match=r"module\.weight is torch\.complex64; hpcps sums float32, float64, bf.*16"):
        hpcps.torch.use(DistributedDataParallel(nn.Linear(2, 2, dtype=torch.complex64)))
    model = DistributedDataParallel(net())
    with pytest.raises(ConfigError, match=r"rank 0 of 1 of the transport is rank . of 2 of the model's process group"):
        hpcps.torch.use(model, LocalWorld(1).transports()[0])
    meta = torch.empty(2, device="meta")
    with pytest.raises(ModelError, match=r"a gradient is on meta; hpcps sums gradients in the memory of CPUs"):
        hpcps.torch.Averages(LocalWorld(1).transports()[0]).start(0, meta)
    sparse = DistributedDataParallel(nn.Embedding(3, 2, sparse=True))
    hpcps.torch.use(sparse)
    with pytest.raises(ModelError, match=r"a gradient is torch\.sparse_coo; hpcps sums dense gradients"):
        sparse(torch.tensor([1])).sum().backward()


def ends_early(end, error, timeout_s):
    """The last rank ends or stops in the middle of training: the first one's backward says so."""
    model = DistributedDataParallel(net())
    transport = hpcps.torch.use(model, timeout_s=timeout_s)
    train(model)
    if transport.rank == transport.size - 1:
        end()
    with pytest.raises(error, match=rf"rank 0 .*rank(\(s\))? {transport.size - 1}"):
        train(model)


def stop():
    time.sleep(2)
    os._exit(0)


def main():
    how, rank, size, store = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    transport = None
    if how == "mpi":
        transport = hpcps.world()
        rank, size = transport.rank, transport.size
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    if how in ("compare", "mpi"):
        compare(transport)
    elif how == "gradients":
        average()
    elif how == "refused":
        refused()
    elif how == "lost":
        ends_early(lambda: os._exit(0), PeerLost, 60)
    elif how == "late":
        ends_early(stop, CommTimeout, 0.5)
    if rank == 0:
        print("done", flush=True)


main()
