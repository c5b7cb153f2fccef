from __future__ import annotations

from hpcps_kernels.cpu.gradient import BLOCK, PANEL, SINGLE_BLOCK

from kernel_cases import FLOATS, Case, below

SHAPES = [  # samples, features, classes
    *((n, 5, 3) for n in (0, 1, 3, 4, 5, SINGLE_BLOCK - 1, SINGLE_BLOCK + 1, BLOCK - 1, BLOCK, BLOCK + 1)),
    *((7, d, 3) for d in (1, 7, 8, 15, 16, 17, 33, PANEL - 1, PANEL, PANEL + 1)),
    *((9, 20, k) for k in (1, 2, 4, 5, 6, 10, 11)),
    (2 * BLOCK + 3, 2 * PANEL + 5, 7),
]


def _case(kernel: str, n: int, d: int, k: int, dtype: str) -> Case:
    softmax = kernel.startswith("softmax")
    lengths = {"n": n, "D": d, "K": k} if softmax else {"n": n, "D": d}
    make = {"weight": lambda shape, dtype, rng: d**-0.5 * rng.standard_normal(shape)}
    if not kernel.startswith("linear"):
        make["labels"] = below(k if softmax else 2)
    return Case(kernel, lengths, {"F": dtype}, make=make)


def _cases(kernel: str):
    softmax = kernel.startswith("softmax")
    sizes = SHAPES if softmax else [s for s in SHAPES if s[2] == 3 or s[1] > 1000]
    return [_case(kernel, *size, dtype) for size in sizes for dtype in FLOATS]


CASES = [
    case
    for model in ("linear", "logistic", "softmax")
    for kind in ("loss_gradient", "scores", "loss")
    if (model, kind) != ("logistic", "scores")
    for case in _cases(f"{model}_{kind}")
]
