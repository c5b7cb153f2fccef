"""Matrix products, named as BLAS names them: n for a factor as it is, t for a transposed one.

F is float32 or float64. Each number of the CPU's products is one chain of multiply-adds in the order of k, fused where
the CPU can do so: its bits depend on the row of one factor and the column of the other, and on nothing else.
"""

from __future__ import annotations

import numpy as np

from hpcps_kernels.interface import Array


def gemm_nn(out: Array, a: Array, b: Array) -> None:
    """out = a @ b. out (m, n), a (m, k), b (k, n) F."""
    _product(out, a, b)


def gemm_nt(out: Array, a: Array, b: Array) -> None:
    """out = a @ b.T. out (m, n), a (m, k), b (n, k) F."""
    _product(out, a, b.T)


def gemm_tn(out: Array, a: Array, b: Array, kept: Array) -> None:
    """out = a.T @ b. out (m, n), a (k, m), b (k, n) F, kept (2,) int64.

    ``kept``: the numbers of out, row after row, from kept[0] to kept[1] - 1 are read by the caller's core. Others are
    read by other cores: they may be stored past the caches, so that no copy of them there has to be given up.
    """
    _product(out, a.T, b)


def _product(out: Array, a: Array, b: Array) -> None:
    with np.errstate(all="ignore"):  # some of OpenBLAS's kernels compute also with what lies behind short rows
        np.matmul(a, b, out=out)
