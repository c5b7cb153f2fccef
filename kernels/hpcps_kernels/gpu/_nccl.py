"""NCCL, as CuPy brings it: sums over GPUs, from memory to memory. The module is handed in by the device."""

from __future__ import annotations

import os
from typing import Any


class Nccl:
    """``module``: ``cupy.cuda.nccl``. All methods raise RuntimeError, in one line, where NCCL does."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def unique_id(self) -> bytes:
        """The name of a communicator to be: made by one rank, and told to all."""
        return bytes(self._module.get_unique_id())

    def communicator(self, size: int, unique_id: bytes, rank: int) -> Communicator:
        """This rank's end of a communicator of ``size`` ranks, each on a GPU of its own, the current one. Blocks until
        all have come, without a timeout; sums do not block, for connections are made here, not by the first of each
        kind."""
        os.environ.setdefault("NCCL_RUNTIME_CONNECT", "0")  # of NCCL 2.22 and later, which else make them when needed
        return Communicator(self._module, self._module.NcclCommunicator(size, unique_id, rank))


class Communicator:
    """Sums that all ranks ask for in one order. Nothing blocks but, in some versions of NCCL, :meth:`abort`."""

    def __init__(self, module: Any, inner: Any) -> None:
        self._inner = inner
        self._sum = module.NCCL_SUM
        self._types = {"float32": module.NCCL_FLOAT32, "float64": module.NCCL_FLOAT64}

    def add_up(self, x: Any, stream: Any) -> None:
        """Overwrite ``x``, (n,) float32 or float64 of the device, C-contiguous, with the sum of all ranks', in the
        order of the stream: see :class:`hpcps_kernels.gpu._launch.Stream`. All ranks get the same bits."""
        place = x.data.ptr
        self._inner.allReduce(place, place, x.size, self._types[x.dtype.name], self._sum, stream.ptr)

    def problem(self) -> str:
        """What has gone wrong with sums that were asked for, as far as NCCL knows; "" if nothing."""
        try:
            self._inner.check_async_error()
        except RuntimeError as error:
            return " ".join(str(error).split())
        return ""

    def abort(self) -> None:
        """End all sums under way; there can be no others. A second call does nothing."""
        self._inner.abort()
