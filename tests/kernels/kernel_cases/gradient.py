from __future__ import annotations

from hpcps_kernels.cpu.gradient import BLOCK, PANEL, SINGLE_BLOCK
from hpcps_kernels.spec import DTYPES, POINT_LOSSES

from kernel_cases import FLOATS, Case, below, positive
from kernel_cases.loss import UNWEIGHTED, point_labels

SHAPES = [  # samples, features, classes
    *((n, 5, 3) for n in (0, 1, 3, 4, 5, SINGLE_BLOCK - 1, SINGLE_BLOCK + 1, BLOCK - 1, BLOCK, BLOCK + 1)),
    *((7, d, 3) for d in (1, 7, 8, 15, 16, 17, 33, PANEL - 1, PANEL, PANEL + 1)),
    *((9, 20, k) for k in (1, 2, 4, 5, 6, 10, 11)),
    (2 * BLOCK + 3, 2 * PANEL + 5, 7),
]
SINGLE_SHAPES = [shape for shape in SHAPES if shape[2] == 3 or shape[1] > 1000]
TYPICAL = (BLOCK + 7, 37, 6)


def _case(
    kernel: str,
    shape: tuple[int, int, int],
    dtype: str,
    stored: str = "",
    loss: str = "logistic",
    weighted: bool = True,
) -> Case:
    """A call with samples `stored` in a dtype of their own, or as everything else."""
    n, d, k = shape
    stored = stored or dtype
    spread = 1 if stored.startswith("float") else 50
    softmax = kernel.startswith("softmax")
    make = {
        "weight": lambda shape, dtype, rng: d**-0.5 / spread * rng.standard_normal(shape),
        "labels": below(k) if softmax else point_labels(loss),
        "sample_weight": positive,
    }
    lengths = {"n": n, "D": d, **({"K": k} if softmax else {}), **({} if weighted else UNWEIGHTED)}
    return Case(kernel, lengths, {"F": dtype, "X": stored}, {"loss": loss, "delta": 0.7}, make)


CASES = [
    *(_case("dense_loss_gradient", shape, dtype) for shape in SINGLE_SHAPES for dtype in FLOATS),
    *(_case("dense_scores", shape, dtype) for shape in SINGLE_SHAPES for dtype in FLOATS),
    *(
        _case(kernel, shape, dtype)
        for kernel in ("softmax_loss_gradient", "softmax_scores")
        for shape in SHAPES
        for dtype in FLOATS
    ),
    *(
        _case(kernel, TYPICAL, dtype, stored, weighted=False)
        for kernel in ("dense_loss_gradient", "softmax_loss_gradient", "dense_scores", "softmax_scores")
        for stored in DTYPES["X"]
        for dtype in FLOATS
    ),
    *(_case("dense_loss_gradient", TYPICAL, dtype, loss=loss) for loss in POINT_LOSSES for dtype in FLOATS),
]
