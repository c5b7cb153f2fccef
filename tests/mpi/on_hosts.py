"""What each rank of test_hosts.py does: sums of several sizes; the bytes of the last are counted at the interface."""

import json
import sys
from pathlib import Path

import hpcps_kernels
import numpy as np

from hpcps.collectives.engine import Engine
from hpcps.comm import doubling, mpi, ring
from hpcps.comm.meeting import Meeting

COUNTS = [0, 1, 5, 1000, 1 << 20]
SENT = Path("/sys/class/net/eth0/statistics/tx_bytes")


def checked_sum(transport, reduce, count):
    """Sum, compare with the closed form; returns the bytes that this host sent meanwhile."""
    x = (np.arange(count) % 1000 * transport.size + transport.rank).astype(np.float32)
    expected = np.arange(count) % 1000 * transport.size**2 + transport.size * (transport.size - 1) // 2
    transport.barrier()
    before = int(SENT.read_text())
    reduce(transport, x, hpcps_kernels.load("reference").add_into)
    transport.barrier()  # all have received, so that nothing is left to be sent
    sent = int(SENT.read_text()) - before
    assert np.array_equal(x, expected.astype(np.float32)), count
    return sent


def hierarchical(transport, x, add_into):
    engine = transport.engine = transport.engine or Engine(transport, hpcps_kernels.load("cpu"))
    assert engine.choice.pick(1 << 20, engine.layout) == "hierarchical"
    engine.start(x).wait()


def main(ways):
    transport = mpi.world(timeout_s=20)
    transport.crowded(True)  # the hosts share the cores of this machine
    for count in COUNTS:
        for way in ways:
            sent = checked_sum(transport, way, count)
    meeting = Meeting(transport)
    names = meeting.gather(np.frombuffer(f"{transport.node} ".encode(), np.uint8)).tobytes().decode().split()
    counted = meeting.gather(np.array([sent])).tolist()
    if transport.rank == 0:
        print(json.dumps({"nodes": names, "bytes": COUNTS[-1] * 4, "sent_bytes": counted}))
        sys.stdout.flush()


main((hierarchical,) if sys.argv[1:] == ["hierarchical"] else (doubling.allreduce, ring.allreduce))
