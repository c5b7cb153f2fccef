"""Training and held-out samples for the ranks of a job: a rank reads only the blocks that it owns."""

from hpcps.data.blocks import Block, Csr, Dataset, find_bad, joined
from hpcps.data.load import check_counts, count_entries, count_ids, load_data, load_samples
from hpcps.data.source import DataOptions
from hpcps.data.stream import chained

__all__ = [
    "Block",
    "Csr",
    "DataOptions",
    "Dataset",
    "chained",
    "check_counts",
    "count_entries",
    "count_ids",
    "find_bad",
    "joined",
    "load_data",
    "load_samples",
]
