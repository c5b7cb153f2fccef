from __future__ import annotations

import numpy as np
from hpcps_kernels.cpu._gemm_tiles import COLUMN_BYTES, ROWS
from hpcps_kernels.cpu.gradient import BLOCK
from hpcps_kernels.spec import DTYPES, POINT_LOSSES

from kernel_cases import FLOATS, Case, below, positive
from kernel_cases.loss import UNWEIGHTED, point_labels

GRAINS = [  # the sizes of grains, and how many additions follow each
    ((3,), (0,)),
    ((4, 4), (0, 1)),
    ((5, 0, 1, 7, 2), (0, 1, 0, 2, 1)),
    ((0, 3, 3), (0, 0, 1)),
    ((BLOCK, 9, BLOCK - 9, 1), (0, 1, 0, 1)),
    ((BLOCK + 5, 2), (0, 0)),
]
FEATURES_AND_CLASSES = [(1, 1), (5, 3), (33, 6), (150, 10)]
TYPICAL = GRAINS[2]


def _arrays(sizes, adds):
    return {
        "bounds": lambda shape, dtype, rng: np.cumsum([0, *sizes]),
        "adds": lambda shape, dtype, rng: np.array(adds),
    }


def _linear(kernel, grains, features, classes, dtype, stored="", loss="logistic", weighted=True) -> Case:
    sizes, adds = grains
    stored = stored or dtype
    spread = 1 if stored.startswith("float") else 50
    softmax = kernel.startswith("softmax")
    make = {
        "weight": lambda shape, dtype, rng: features**-0.5 / spread * rng.standard_normal(shape),
        "labels": below(classes) if softmax else point_labels(loss),
        "sample_weight": positive,
        **_arrays(sizes, adds),
    }
    numbers = classes * (features + 1) if softmax else features + 1
    lengths = {"T": len(sizes), "N": numbers, "n": sum(sizes), "D": features, "G": len(sizes)}
    lengths |= ({"K": classes} if softmax else {}) | ({} if weighted else UNWEIGHTED)
    return Case(kernel, lengths, {"F": dtype, "X": stored}, {"loss": loss, "delta": 0.7}, make, "".join(map(str, adds)))


def _layer(grains, units, features, dtype) -> Case:
    sizes, adds = grains
    numbers = units * (features + 1)
    lengths = {"T": len(sizes), "N": numbers + 9, "n": sum(sizes), "H": units, "D": features, "G": len(sizes)}
    return Case("layer_grains", lengths, {"F": dtype}, {"at": 4}, _arrays(sizes, adds), "".join(map(str, adds)))


CASES = [
    *(
        _linear(kernel, grains, *shape, dtype)
        for kernel in ("dense_grains", "softmax_grains")
        for grains in GRAINS
        for shape in FEATURES_AND_CLASSES
        for dtype in FLOATS
    ),
    *(_linear("dense_grains", TYPICAL, 37, 1, dtype, loss=loss) for loss in POINT_LOSSES for dtype in FLOATS),
    *(_layer(grains, 7, 20, dtype) for grains in GRAINS for dtype in FLOATS),
    *(
        _layer(TYPICAL, units, features, dtype)
        for units in (0, 1, ROWS - 1, ROWS, ROWS + 1)
        for features in (0, 1, COLUMN_BYTES // 8, COLUMN_BYTES // 4, COLUMN_BYTES // 4 + 1)
        for dtype in FLOATS
    ),
    *(
        _linear(kernel, TYPICAL, 37, 6, dtype, stored, weighted=False)
        for kernel in ("dense_grains", "softmax_grains")
        for stored in DTYPES["X"]
        for dtype in FLOATS
    ),
]
