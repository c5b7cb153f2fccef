"""hpcps: a training engine for HPC machines.

Ranks compute gradients with compiled kernels and agree on parameters by ring all-reduce or through a sharded
parameter server, over MPI or, without it, between the threads of one process.

>>> import hpcps
>>> config = hpcps.read_config("digits.toml")   # doctest: +SKIP
>>> run = hpcps.train(config)                   # doctest: +SKIP
>>> run.summary["accuracy"]                     # doctest: +SKIP
0.95
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpcps._version import __version__

if TYPE_CHECKING:
    from hpcps.collectives import all_gather, allreduce, reduce_scatter, start_allreduce
    from hpcps.config import Config
    from hpcps.config import read as read_config
    from hpcps.launch import train, world
    from hpcps.run import Run

__all__ = [
    "Config",
    "Run",
    "__version__",
    "all_gather",
    "allreduce",
    "read_config",
    "reduce_scatter",
    "start_allreduce",
    "train",
    "world",
]

_HOMES = {  # where a name lives: `import hpcps` on a thousand ranks reads this file alone
    "Config": ("hpcps.config", "Config"),
    "Run": ("hpcps.run", "Run"),
    "all_gather": ("hpcps.collectives", "all_gather"),
    "allreduce": ("hpcps.collectives", "allreduce"),
    "reduce_scatter": ("hpcps.collectives", "reduce_scatter"),
    "start_allreduce": ("hpcps.collectives", "start_allreduce"),
    "read_config": ("hpcps.config", "read"),
    "train": ("hpcps.launch", "train"),
    "world": ("hpcps.launch", "world"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hpcps' has no attribute {name!r}")
    import importlib

    module, attribute = _HOMES[name]
    found = globals()[name] = getattr(importlib.import_module(module), attribute)
    return found
