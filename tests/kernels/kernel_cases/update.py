from __future__ import annotations

from kernel_cases import FLOATS, Case, positive

LENGTHS = (0, 1, 7, 16, 17, 1000, 4097)
RATE = {"learning_rate": 0.3, "gradient_scale": 0.37}
SCALARS = {
    "sgd": RATE,
    "momentum": {**RATE, "momentum": 0.85},
    "adagrad": {**RATE, "epsilon": 1e-3},
    "adam": {**RATE, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3, "step": 3},
}

CASES = [
    Case(kernel, {"n": n}, {"F": dtype}, scalars, {"accumulator": positive, "second": positive})
    for kernel, scalars in SCALARS.items()
    for n in LENGTHS
    for dtype in FLOATS
]
