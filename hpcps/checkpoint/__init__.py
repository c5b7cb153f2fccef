"""Checkpoints on disk: how they are written while training goes on, when, and how the newest good one is found.

What a run's state is, is `hpcps.snapshot`'s; here are its files. A checkpoint is a folder ``step-000000123`` with one
file of the safetensors format for each rank that holds state, and ``manifest.json``, which says what is where, with
sizes and SHA-256. It is written into a hidden folder, brought to disk, and renamed.
"""

from hpcps.checkpoint.folder import CheckpointFolder
from hpcps.checkpoint.keeper import Keeper
from hpcps.checkpoint.manifest import Facts
from hpcps.checkpoint.reading import Found, newest
from hpcps.checkpoint.same import different_data
from hpcps.checkpoint.saver import Saver, shard_name
from hpcps.checkpoint.when import When

__all__ = ["CheckpointFolder", "Facts", "Found", "Keeper", "Saver", "When", "different_data", "newest", "shard_name"]
