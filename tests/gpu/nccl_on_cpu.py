"""What stands in for `cupy.cuda.nccl`: ranks are threads, and a sum is there as soon as all have asked for it.

Until a rank has seen that its sum is done its array holds nan, as on a GPU nobody knows what it holds.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
from on_cpu import STREAMS

available = True
NCCL_SUM, NCCL_FLOAT32, NCCL_FLOAT64 = 0, 7, 8
DTYPES = {NCCL_FLOAT32: np.float32, NCCL_FLOAT64: np.float64}
ID_BYTES = 128

CHANGED = threading.Condition()
MADE: dict[bytes, list[NcclCommunicator]] = {}
ABSENT: set[int] = set()  # ranks that never ask for a sum
BROKEN: list[str] = []  # what communicators have found out beside their sums


class NcclError(RuntimeError):
    """As NCCL's."""


def reset() -> None:
    MADE.clear()
    ABSENT.clear()
    BROKEN.clear()


def get_unique_id() -> bytes:
    return len(MADE).to_bytes(2, "little") + b"\xff" * (ID_BYTES - 2)


class NcclCommunicator:
    """One rank's end. `sums`: what it has been asked for; `is_aborted`: whether it is of no more use."""

    def __init__(self, ndev: int, commId: bytes, rank: int) -> None:  # noqa: N803  (CuPy's)
        assert type(commId) is bytes
        assert len(commId) == ID_BYTES
        self.size, self.rank, self.is_aborted = ndev, rank, False
        self.sums: list[Asked] = []
        with CHANGED:
            self.all = MADE.setdefault(commId, [])
            self.all.append(self)
            CHANGED.notify_all()
            CHANGED.wait_for(lambda: len(self.all) == ndev)

    def allReduce(  # noqa: N802  (CuPy's)
        self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int
    ) -> None:
        assert (sendbuf, op) == (recvbuf, NCCL_SUM)
        if self.is_aborted:
            raise NcclError("NCCL_ERROR_INVALID_USAGE: invalid usage")
        if self.rank not in ABSENT:
            asked = Asked(self, _array(recvbuf, count, DTYPES[datatype]))
            STREAMS[stream].ask_sum(recvbuf, recvbuf + asked.out.nbytes, asked)
            with CHANGED:
                self.sums.append(asked)

    def check_async_error(self) -> None:
        if BROKEN:
            raise NcclError(BROKEN[0])

    def abort(self) -> None:
        self.is_aborted = True


class Asked:
    """One rank's part of a sum."""

    def __init__(self, communicator: NcclCommunicator, out: np.ndarray[Any, Any]) -> None:
        self.out, self.given, self._of = out, out.copy(), communicator
        self._number, self._is_seen = len(communicator.sums), False
        out.fill(np.nan)

    def look(self) -> bool:
        """Whether it is done; who looks sees the sum from then on."""
        with CHANGED:
            if not self._is_seen and all(len(one.sums) > self._number for one in self._of.all):
                ranks = sorted(self._of.all, key=lambda one: one.rank)
                parts = [one.sums[self._number].given for one in ranks]
                assert len({(len(part), part.dtype) for part in parts}) == 1, "the ranks sum different arrays"
                self.out[:] = sum(parts[1:], parts[0])
                self._is_seen = True
            return self._is_seen


def _array(place: int, count: int, dtype: Any) -> np.ndarray[Any, Any]:
    memory = (ctypes.c_char * (count * np.dtype(dtype).itemsize)).from_address(place)
    return np.frombuffer(memory, dtype)
