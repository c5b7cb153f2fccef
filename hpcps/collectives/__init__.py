"""Collectives for any caller's NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import hpcps_kernels

from hpcps.collectives.engine import Engine
from hpcps.collectives.formats import Flat, flat, is_plain
from hpcps.collectives.pending import Pending
from hpcps.comm.transport import Array, Transport

__all__ = ["Pending", "all_gather", "allreduce", "reduce_scatter", "start_allreduce"]


def allreduce(array: Array, transport: Transport) -> Array:
    """Sum ``array`` over the ranks of ``transport``, in place; returns it. Blocks.

    ``array``: any shape and strides, the same shape and dtype on every rank: float32, float64, int64, or float16 or
    ml_dtypes' bfloat16, which are added as float32. All ranks get the same bits. Fastest with contiguous arrays from
    ``transport.empty``; the first call on a transport sets up shared memory. Raises TypeError for another dtype,
    ValueError for a read-only array, CommError where ranks bring different arrays, CommTimeout, PeerLost.
    """
    engine = transport.engine
    if engine is not None and array.ndim == 1 and is_plain(array):
        engine.sum_plain(array)
        return array
    given = flat(array, "allreduce")
    _engine(transport).allreduce(given.x, given.format)
    _give_back(given, array)
    return array


def start_allreduce(array: Array, transport: Transport) -> Pending:
    """Begin :func:`allreduce` and return at once. ``array``, which must be C-contiguous, may not be touched before the
    ticket's ``wait()`` has returned or its ``done()`` has said True. All ranks start their collectives in one order."""
    given = flat(array, "start_allreduce")
    if not given.is_view:
        raise ValueError("start_allreduce: the array must be C-contiguous")
    return _engine(transport).start(given.x, given.format)


def reduce_scatter(array: Array, transport: Transport, bounds: Sequence[int] | None = None) -> slice:
    """Sum a one-dimensional ``array`` over the ranks; each rank gets one chunk. Blocks.

    ``bounds``: P + 1 ascending numbers from 0 to n, chunk r is bounds[r] .. bounds[r + 1]; equal chunks if None.
    Returns the slice of ``array`` that holds this rank's sum; the rest is unspecified then. float32, float64, int64.
    Raises as :func:`allreduce`.
    """
    given = _plain(array, "reduce_scatter")
    engine = _engine(transport)
    engine.prepare_reduce_scatter(given.x, bounds)().wait()
    _give_back(given, array)
    return engine.chunk(len(given.x), bounds)


def all_gather(array: Array, transport: Transport, bounds: Sequence[int] | None = None) -> Array:
    """Fill a one-dimensional ``array`` with the chunks of all ranks, of which this one brings its own; returns it.
    Blocks. ``bounds``, dtypes and errors as :func:`reduce_scatter`."""
    given = _plain(array, "all_gather")
    _engine(transport).prepare_all_gather(given.x, bounds)().wait()
    _give_back(given, array)
    return array


def _engine(transport: Transport) -> Engine:
    """The transport's own, made by its first collective."""
    if transport.engine is None:
        transport.engine = Engine(transport, hpcps_kernels.load("cpu"))
    engine: Engine = transport.engine
    return engine


def _plain(array: Array, what: str) -> Flat:
    given = flat(array, what)
    if array.ndim != 1 or given.format != "own":
        raise TypeError(
            f"{what} takes one-dimensional float32, float64 or int64, not {array.ndim} dimensions of {array.dtype}"
        )
    return given


def _give_back(given: Flat, array: Array) -> None:
    if not given.is_view:
        array[...] = given.x.view(array.dtype).reshape(array.shape)
