from __future__ import annotations

from kernel_cases import FLOATS, Case, positive

LENGTHS = (0, 1, 7, 16, 17, 1000, 4097)
TABLES = [(0, 5, 3), (3, 3, 1), (50, 90, 1), (20, 33, 5), (41, 50, 16), (9, 30, 64), (30, 40, 33)]  # picked, rows, width
RATE = {"learning_rate": 0.3, "gradient_scale": 0.37}
PENALTY = {"l1": 0.02, "l2": 0.1}
ADAM = {**RATE, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3, "step": 3}
SCALARS = {
    "sgd": RATE,
    "momentum": {**RATE, "momentum": 0.85},
    "nesterov": {**RATE, "momentum": 0.85},
    "adagrad": {**RATE, "epsilon": 1e-3},
    "rmsprop": {**RATE, "decay": 0.8, "epsilon": 1e-3},
    "adam": ADAM,
    "adamw": {**ADAM, "weight_decay": 0.1},
    "ftrl": {**RATE, "beta": 0.7},
}
POSITIVE = dict.fromkeys(("accumulator", "mean_square", "second", "squares"), positive)


def _numbers(kernel: str, penalised: bool) -> dict[str, float]:
    return SCALARS[kernel] | (PENALTY if penalised else dict.fromkeys(PENALTY, 0.0))


def _distinct(rows: int):
    return lambda shape, dtype, rng: rng.permutation(rows)[: shape[0]]


def _rows(kernel: str, k: int, n: int, w: int, dtype: str) -> Case:
    lengths, make = {"k": k, "N": n, "W": w}, {**POSITIVE, "index": _distinct(n)}
    return Case(f"{kernel}_rows", lengths, {"F": dtype}, _numbers(kernel, k % 2 > 0), make)


CASES = [
    *(
        Case(kernel, {"n": n}, {"F": dtype}, _numbers(kernel, penalised), POSITIVE, "penalised" * penalised)
        for kernel in SCALARS
        for penalised in (True, False)
        for n in LENGTHS
        for dtype in FLOATS
    ),
    *(_rows(kernel, *size, dtype) for kernel in SCALARS for size in TABLES for dtype in FLOATS),
]
