"""Which shard holds which parameters, and which ranks are what: pure functions of integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcps.comm.topology import chunk_bounds, slices
from hpcps.comm.transport import Array
from hpcps.errors import ConfigError


@dataclass(frozen=True)
class Roles:
    """Workers are ranks ``0 .. workers - 1``. Servers are the ranks after them, shard s on rank ``workers + s``; or,
    where they ``are_colocated``, the same ranks: shard s on rank s."""

    workers: int
    servers: int
    are_colocated: bool = False

    def server_rank(self, shard: int) -> int:
        """The rank of a shard."""
        return shard if self.are_colocated else self.workers + shard


def roles(ranks: int, servers: int, colocated: bool = False) -> Roles:
    """Split the ranks of a job. One rank alone is worker and all shards in one (no server ranks).

    >>> roles(5, 2)
    Roles(workers=3, servers=2, are_colocated=False)

    Raises ConfigError where no rank would be left to work.
    """
    if ranks == 1:
        return Roles(1, 0)
    if colocated:
        return Roles(ranks, ranks, are_colocated=True)
    if servers >= ranks:
        raise ConfigError(
            f"server.count = {servers} leaves no worker among {ranks} ranks; use at least {servers + 1} ranks, "
            "or server.colocated"
        )
    return Roles(ranks - servers, servers)


def shard_slices(parameters: int, shards: int) -> list[slice]:
    """The range of the flat parameters that each shard holds: equal to within one element."""
    return slices(chunk_bounds(parameters, shards))


def keys_of_shard(keys: Array, shard: int, shards: int) -> Array | slice:
    """Which of the keys (k,) are on a shard, as an index into them: key r is on shard r modulo ``shards``."""
    return slice(None) if shards == 1 else np.flatnonzero(keys % shards == shard)
