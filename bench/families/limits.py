"""What the machine can do, measured in turn with what is judged by it: STREAM, a memcpy, and a matrix product."""

from __future__ import annotations

import time
from collections import defaultdict
from statistics import median

import numba
import numpy as np
from hpcps_kernels.cpu._jit import OPTIONS

from families.case import MIB, Array

STREAM_BYTES = 64 * MIB  # of each array
GEMM_N = 2048


@numba.njit(**OPTIONS)
def triad(a: Array, b: Array, c: Array, scalar: float) -> None:
    for i in range(a.shape[0]):
        a[i] = b[i] + scalar * c[i]


@numba.njit(**OPTIONS)
def copy(a: Array, b: Array) -> None:
    for i in range(a.shape[0]):
        a[i] = b[i]


class Limits:
    """Rates in GB/s and GFLOP/s; every measurement is kept."""

    def __init__(self) -> None:
        self.rates: dict[str, list[float]] = defaultdict(list)
        self._arrays = [np.full(STREAM_BYTES // 8, 1.0) for _ in range(3)]
        self._matrices = [np.full((GEMM_N, GEMM_N), 1.0, np.float32) for _ in range(3)]
        for kind in ("stream", "gemm"):  # compiled and warm
            self.measure(kind)
        self.rates.clear()

    def measure(self, kind: str) -> float:
        """Measure one of "stream" (its copy too), "memcpy", "gemm"."""
        a, b, c = self._arrays
        if kind == "stream":
            self._rate("stream copy", 2 * a.nbytes, lambda: copy(a, b))
            return self._rate("stream", 3 * a.nbytes, lambda: triad(a, b, c, 0.5))
        if kind == "memcpy":
            return self._rate("memcpy", 2 * a.nbytes, lambda: np.copyto(a, b))
        x, y, out = self._matrices
        return self._rate("gemm", 2 * GEMM_N**3, lambda: np.matmul(x, y, out=out))

    def _rate(self, kind: str, work: float, call) -> float:
        begin = time.perf_counter()
        call()
        self.rates[kind].append(work / (time.perf_counter() - begin) / 1e9)
        return self.rates[kind][-1]

    def summary(self) -> dict[str, float]:
        """The median of each."""
        return {kind: median(rates) for kind, rates in self.rates.items()}
