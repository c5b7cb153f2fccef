"""Collectives for any caller's NumPy arrays."""

from __future__ import annotations

import hpcps_kernels
import numpy as np

from hpcps.comm import ring
from hpcps.comm.transport import Array, Transport

DTYPES = ("float32", "float64", "int64")


def allreduce(array: Array, transport: Transport) -> Array:
    """Sum ``array`` over the ranks of ``transport``, in place, by ring all-reduce; returns it. Blocks.

    ``array``: any shape and strides, the same shape and dtype (float32, float64 or int64) on every rank. All ranks
    get the same bits. Raises TypeError for another dtype, ValueError for a read-only array, CommTimeout, PeerLost.
    """
    if array.dtype not in DTYPES:
        raise TypeError(f"allreduce of {array.dtype}; it can add {', '.join(DTYPES)}")
    if not array.flags.writeable:
        raise ValueError("allreduce of a read-only array")
    flat = np.ascontiguousarray(array).reshape(-1)
    ring.allreduce(transport, flat, hpcps_kernels.load("cpu").add_into)
    if not np.shares_memory(flat, array):
        array[...] = flat.reshape(array.shape)
    return array
