"""What the two ranks of ``server.py`` do: rank 0 is a worker, rank 1 holds a shard.

``python server_rank.py dense SIZES`` (bytes, separated by commas), ``messages SIZES``, ``peer SIZES``, ``sparse
WIDTHS`` or ``sparse-messages WIDTHS``. Rank 0 prints one line of JSON: a list of {"what", "size", "seconds": one each,
"wrong"}.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial

import hpcps_kernels
import numpy as np

from hpcps import aligned, optim
from hpcps.comm import mpi
from hpcps.comm.memory import Memory
from hpcps.comm.mpi import MpiTransport
from hpcps.comm.order import in_turn
from hpcps.comm.transport import Array
from hpcps.config import Optimizer
from hpcps.first import FirstRows
from hpcps.rows import Merger, PulledRows, Rows
from hpcps.server.remote import RemoteClient
from hpcps.server.serve import Server
from hpcps.server.shown import Viewer
from hpcps.server.store import Shard
from hpcps.server.table import Table
from hpcps.sums import Decoder, Summed

ROWS = 1 << 20
KEYS = 10_000
NEW_CALLS = 60
TIMEOUT_S = 60.0
WARM_UPS = 5
RATE = 0.5
KERNELS = hpcps_kernels.load("cpu")


def calls(size_bytes: int) -> int:
    """How often a call of so many bytes is made."""
    return max(10, min(2000, (256 << 20) // max(size_bytes, 1)))


def start(
    transport: MpiTransport,
    dense: Array,
    rows: PulledRows | None,
    memory: Memory | None = None,
    letters: Memory | None = None,
) -> RemoteClient | None:
    """The worker's client; on the other rank serves until the worker has finished, and then None."""
    decoder, count = Decoder(False, np.float32, KERNELS), len(dense)
    optimizer = optim.make(Optimizer(kind="sgd", learning_rate=RATE), KERNELS)
    widths = {} if rows is None else rows.widths
    firsts = {name: FirstRows((ROWS, width), seed=0) for name, width in widths.items()}
    if transport.rank == 0:
        viewer = None if letters is None else Viewer(firsts, np.float32, KERNELS, letters)
        rest, shared = ([slice(0, count)], [1], 0, decoder), {"memory": memory, "letters": letters}
        return RemoteClient(transport, dense, rows, *rest, **shared, workers=1, viewer=viewer)
    tables = {name: Table(first, np.float32, optimizer, KERNELS, memory=letters) for name, first in firsts.items()}
    shard = Shard(dense, optimizer, decoder, Merger(KERNELS), in_turn(1), 1.0, tables)
    Server(transport, shard, 0, [0], decoder, [1], memory=memory, letters=letters).run()
    return None


def timed(call: Callable[[], None], count: int) -> list[float]:
    """Seconds of each call, after some that are not told."""
    seconds = []
    for number in range(count + WARM_UPS):
        started = time.perf_counter()
        call()
        if number >= WARM_UPS:
            seconds.append(time.perf_counter() - started)
    return seconds


def dense(transport: MpiTransport, size_bytes: int, is_shared: bool) -> list[dict[str, object]]:
    """A push of a gradient and a pull of fresh parameters, together: in memory that both ranks see, or by messages."""
    count = size_bytes // 4
    params, gradient = aligned.zeros(count, np.float32), np.empty(count, np.float32)
    if is_shared:
        common = transport.memory.common(count, np.float32)
        assert common is not None
        params, gradient = common, transport.empty(count, np.float32)
    client = start(transport, params, None, transport.memory if is_shared else None)
    if client is None:
        return []
    gradient[:] = np.arange(count) % 7
    step = 0

    def push_pull() -> None:
        nonlocal step
        step += 1
        client.push(step, Summed(gradient, 1.0))
        client.pull(step, None)

    seconds = timed(push_pull, calls(size_bytes))
    wrong = np.count_nonzero(params != -RATE * step * gradient)
    client.finish()
    what = "push and pull" if is_shared else "push and pull, by messages"
    return [{"what": what, "size": size_bytes, "seconds": seconds, "wrong": int(wrong)}]


def peer(transport: MpiTransport, size_bytes: int) -> list[dict[str, object]]:
    """The same bytes there and back by blocking calls of mpi4py, and nothing done with them: the library's limit."""
    comm, there, back = (
        transport.comm,
        np.arange(size_bytes // 4, dtype=np.float32),
        np.empty(size_bytes // 4, np.float32),
    )
    count = calls(size_bytes)
    if transport.rank == 1:
        for _ in range(count + WARM_UPS):
            comm.Recv(back, 0)
            comm.Send(back, 0)
        return []

    def there_and_back() -> None:
        comm.Send(there, 1)
        comm.Recv(back, 1)

    seconds = timed(there_and_back, count)
    wrong = int(np.count_nonzero(back != there))
    return [{"what": "mpi4py Send and Recv", "size": size_bytes, "seconds": seconds, "wrong": wrong}]


def sparse(transport: MpiTransport, width: int, is_shared: bool) -> list[dict[str, object]]:
    """A push of random rows that there are, acknowledged, a pull of them, and a push of rows that there are not: in
    memory that both see, or by messages."""
    nothing, rows = np.empty(0, np.float32), PulledRows({"table": width}, np.float32, KERNELS)
    client = start(transport, nothing, rows, letters=transport.memory if is_shared else None)
    if client is None:
        return []
    rng = np.random.default_rng(0)
    batches = [np.sort(rng.choice(ROWS, KEYS, replace=False)) for _ in range(20)]
    values = (np.arange(KEYS * width) % 5).astype(np.float32).reshape(KEYS, width)
    expected, step = np.zeros((ROWS, width), np.float32), 0

    def push() -> None:
        nonlocal step
        step += 1
        client.push(step, Summed(nothing, 1.0, {"table": Rows(batches[step % 20], values)}))
        client.pull(step, None)

    pushes = timed(push, 200)
    for number in range(1, step + 1):
        expected[batches[number % 20]] -= RATE * values
    pulled = 0

    def pull() -> None:
        nonlocal pulled
        pulled += 1
        client.pull(step, {"table": batches[pulled % 20]})

    pulls, wrong = timed(pull, 200), 0
    for keys in batches:
        client.pull(step, {"table": keys})
        wrong += np.count_nonzero(rows.rows("table", keys) != expected[keys])
    unknown = [new_keys(rng) for _ in range(NEW_CALLS + WARM_UPS)]
    more = iter(unknown)

    def push_new() -> None:
        nonlocal step
        step += 1
        client.push(step, Summed(nothing, 1.0, {"table": Rows(next(more), values)}))
        client.pull(step, None)

    makes = timed(push_new, NEW_CALLS)
    for keys in unknown:
        client.pull(step, {"table": keys})
        wrong += np.count_nonzero(rows.rows("table", keys) != -RATE * values)
    client.finish()
    size, how = KEYS * (8 + 4 * width), f"{width} wide" if is_shared else f"{width} wide, by messages"
    return [
        {"what": f"sparse push, {how}", "size": size, "seconds": pushes, "wrong": int(wrong)},
        {"what": f"sparse pull, {how}", "size": size, "seconds": pulls, "wrong": int(wrong)},
        {"what": f"sparse push of new rows, {how}", "size": size, "seconds": makes, "wrong": int(wrong)},
    ]


def new_keys(rng: np.random.Generator) -> Array:
    """KEYS distinct ones of 2**62 beyond the first ROWS, ascending."""
    keys: Array = np.unique(rng.integers(ROWS, 1 << 62, 2 * KEYS))
    return np.sort(rng.permutation(keys)[:KEYS])


CASES = {
    "dense": partial(dense, is_shared=True),
    "messages": partial(dense, is_shared=False),
    "peer": peer,
    "sparse": partial(sparse, is_shared=True),
    "sparse-messages": partial(sparse, is_shared=False),
}


def main(kind: str, numbers: list[int]) -> None:
    """All of them, one after the other."""
    transport = mpi.world(TIMEOUT_S)
    found = []
    for number in numbers:
        found += CASES[kind](transport, number)
        transport.barrier()
    if transport.rank == 0:
        print(json.dumps(found))
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], [int(number) for number in sys.argv[2].split(",")])
