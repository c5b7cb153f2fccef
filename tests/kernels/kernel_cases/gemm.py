from __future__ import annotations

from hpcps_kernels.cpu._gemm_tiles import COLUMN_BYTES, FEW, ROWS
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
    (COLUMNS + 5, 3 * COLUMNS + 5, 4500),  # one panel is more than what is packed at a time
]
CASES = [
    Case(kernel, {"m": m, "n": n, "k": k}, {"F": dtype})
    for kernel in ("gemm_nn", "gemm_nt", "gemm_tn")
    for m, n, k in SIZES
    for dtype in FLOATS
]
