"""All-gather of rows, or of their keys alone: every rank's, of whatever length, to every rank."""

from __future__ import annotations

import numpy as np

from hpcps.comm import ring
from hpcps.comm.transport import Array, Transport


def all_gather_rows(transport: Transport, mine: list[tuple[Array, Array]]) -> list[list[tuple[Array, Array]]]:
    """Bring the (keys, values) pairs of all ranks together.

    ``mine``: for each table keys (k,) int64 and values (k, W), k as this rank has it, W and dtype alike on all ranks.
    Returns for each rank, in order, what it brought; its own as views of copies. Cost: P - 1 steps for the counts, and
    P - 1 for the keys and for the values of each table; at most all ranks' rows sent by each. Blocks.
    """
    gathered: list[list[tuple[Array, Array]]] = [[] for _ in range(transport.size)]
    for (keys, values), bounds in zip(mine, _bounds(transport, [len(keys) for keys, _ in mine]), strict=True):
        all_keys = _joined(transport, keys, bounds, 1)
        all_values = _joined(transport, values.reshape(-1), bounds, values.shape[1])
        for rank in range(transport.size):
            own = slice(bounds[rank], bounds[rank + 1])
            gathered[rank].append((all_keys[own], all_values.reshape(-1, values.shape[1])[own]))
    return gathered


def all_gather_keys(transport: Transport, mine: list[Array]) -> list[list[Array]]:
    """Bring the keys of all ranks together.

    ``mine``: for each table keys (k,) int64, k as this rank has it. Returns for each table what each rank brought, in
    rank order. Cost: P - 1 steps for the counts, and P - 1 for the keys of each table. Blocks.
    """
    gathered = []
    for keys, bounds in zip(mine, _bounds(transport, [len(keys) for keys in mine]), strict=True):
        gathered.append(np.split(_joined(transport, keys, bounds, 1), bounds[1:-1]))
    return gathered


def _bounds(transport: Transport, lengths: list[int]) -> list[list[int]]:
    """For each table, where each rank's keys begin and end among those of all."""
    tables = len(lengths)
    counts = np.zeros((transport.size, tables), np.int64)
    counts[transport.rank] = lengths
    ring.all_gather(transport, counts.reshape(-1), [rank * tables for rank in range(transport.size + 1)])
    return [[0, *np.cumsum(column).tolist()] for column in counts.T]


def _joined(transport: Transport, mine: Array, bounds: list[int], width: int) -> Array:
    scaled = [bound * width for bound in bounds]
    joined = np.empty(scaled[-1], mine.dtype)
    joined[scaled[transport.rank] : scaled[transport.rank + 1]] = mine
    ring.all_gather(transport, joined, scaled)
    return joined
