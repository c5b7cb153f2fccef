from __future__ import annotations

from hpcps_kernels.cpu._gemm_tiles import COLUMN_BYTES, FEW, ROWS, SOME
from hpcps_kernels.cpu._vectors import VECTOR_BYTES

from kernel_cases import FLOATS, Case

COLUMNS, LANES = COLUMN_BYTES // 4, VECTOR_BYTES // 4  # of float32
SIZES = [  # m, n, k
    (0, 3, 2),
    (3, 0, 2),
    (3, 2, 0),
    (1, 1, 1),
    (2, 3, 5),
    (FEW + 1, 10, LANES),
    (ROWS - 1, COLUMNS - 1, LANES - 1),
    (ROWS + 1, COLUMNS + 1, 2 * LANES + 1),
    (10, 2 * COLUMNS, 37),
    (2 * COLUMNS, 10, 37),
    (2 * ROWS + 3, 3 * COLUMNS, 3 * LANES),
    (3 * COLUMNS, 2 * ROWS + 3, 3 * LANES),
    (COLUMNS + 5, 3 * COLUMNS + 5, 4500),  # steps in several parts
    (40, 700, 1024),  # more columns than are packed at a time; rows that lie a page apart
    (3, 200, 1024),
    (40, 300, 2100),
    (1024, 300, 40),  # steps that lie a page apart
    (1024, 70, 1100),
    (512, 70, 40),  # steps that share few sets of a cache
    (128, 70, 130),
    (SOME, COLUMNS + 1, 2048),
    (FEW, 2 * COLUMNS, 2048),
]
CASES = [
    Case(kernel, {"m": m, "n": n, "k": k}, {"F": dtype})
    for kernel in ("gemm_nn", "gemm_nt", "gemm_tn")
    for m, n, k in SIZES
    for dtype in FLOATS
]
