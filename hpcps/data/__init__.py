"""Training and held-out samples for the ranks of a job: a rank reads only the blocks that it owns."""

from hpcps.data.blocks import Block, Csr, Dataset, find_bad
from hpcps.data.load import load_data, load_samples
from hpcps.data.source import DataOptions
from hpcps.data.together import Alone, Together, agree

__all__ = [
    "Alone",
    "Block",
    "Csr",
    "DataOptions",
    "Dataset",
    "Together",
    "agree",
    "find_bad",
    "load_data",
    "load_samples",
]
