from __future__ import annotations

import numpy as np
from hpcps_kernels.spec import ACTIVATIONS

from kernel_cases import FLOATS, Case

SIZES = [(0, 5), (3, 0), (1, 1), (7, 3), (5, 16), (4, 33), (33, 257)]


def spread(shape, dtype, rng) -> np.ndarray:
    return 3 * rng.standard_normal(shape)


CASES = [
    Case(kernel, {"n": n, "H": h}, {"F": dtype}, {"activation": activation}, {"z": spread})
    for kernel in ("bias_activation", "activation_gradient")
    for activation in ACTIVATIONS
    for n, h in SIZES
    for dtype in FLOATS
]
