"""Linear models of dense samples: scores and the gradients of losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from hpcps_kernels.gpu._launch import FLOATS, Launch, device, one_each, strides
from hpcps_kernels.gpu._told import Told
from hpcps_kernels.gpu.loss import check_delta, label_error
from hpcps_kernels.gpu.reduce import fold_parts, sum_columns

TILE = 32  # samples that a block takes at a time, as in gradient.cu
STORED = (*FLOATS, "f16", "u8", "i8")
SCORES = Launch(
    "gradient",
    "scores",
    "T *, const X *, const T *, const T *, i64, i64, i64",
    strides(TILE),
    {"T": FLOATS, "X": STORED, "C": ("1", "4")},
)
_LINEAR = (
    "T *, T *, double *, double *, T *, const X *, const L *, const T *, i64, const T *, const T *, "
    "const i64 *, i64, i64, i64, double"
)
_TYPES = {"T": FLOATS, "X": STORED}
POINT = Launch("gradient", "point_linear", _LINEAR.replace("L *", "T *"), one_each, _TYPES)
SOFTMAX = Launch("gradient", "softmax_linear", _LINEAR.replace("L *", "i64 *"), one_each, _TYPES)


class Parts(NamedTuple):
    """What each block has summed up over its samples."""

    gradients: Any  # (blocks, K * D)
    biases: Any  # (blocks, K)
    losses: Any  # (blocks,) float64


def dense_loss_gradient(
    weight_gradient: Any,
    bias_gradient: Any,
    samples: Any,
    labels: Any,
    sample_weight: Any,
    weight: Any,
    bias: Any,
    loss: int,
    delta: float,
) -> float:
    check_delta(loss, delta)
    told = Told()
    bounds = cuts(0, len(samples), 1)
    parts = linear_parts(told, samples, labels, sample_weight, weight, bias, bounds, loss, delta)
    return _summed(told, weight_gradient, bias_gradient, parts, label_error(loss))


def softmax_loss_gradient(
    weight_gradient: Any, bias_gradient: Any, samples: Any, labels: Any, sample_weight: Any, weight: Any, bias: Any
) -> float:
    told = Told()
    bounds = cuts(0, len(samples), bias.size)
    parts = linear_parts(told, samples, labels, sample_weight, weight, bias, bounds, None, 0.0)
    return _summed(told, weight_gradient, bias_gradient, parts, label_error(None))


def dense_scores(scores: Any, samples: Any, weight: Any, bias: Any) -> None:
    softmax_scores(scores, samples, weight, bias)


def softmax_scores(scores: Any, samples: Any, weight: Any, bias: Any) -> None:
    (n, features), k = samples.shape, bias.size
    SCORES(n, scores, samples, weight, bias, n, features, k, T=weight.dtype, X=samples.dtype, C="1" if k == 1 else "4")


def cuts(begin: int, end: int, classes: int) -> list[int]:
    """Where blocks begin, and the end: a function of the number of samples alone, so that the order of sums is, too.

    Many blocks keep a GPU busy; but each writes a gradient, which for few samples is more than it reads.
    """
    n = end - begin
    each = max(TILE, -(-n // 512), min(16 * classes, -(-n // 256)))
    each = -(-each // TILE) * TILE
    return [*range(begin, end, each), end] if n else [begin, end]


def linear_parts(
    told: Told,
    samples: Any,
    labels: Any,
    sample_weight: Any,
    weight: Any,
    bias: Any,
    bounds: Sequence[int],
    loss: int | None,
    delta: float,
) -> Parts:
    """Launch it: the gradients of samples bounds[b] .. bounds[b + 1] - 1, for every b; ``loss`` None for softmax."""
    here, blocks, classes = device(), len(bounds) - 1, bias.size
    (n, features), dtype = samples.shape, weight.dtype
    parts = Parts(
        here.empty((blocks, classes * features), dtype),
        here.empty((blocks, classes), dtype),
        here.empty(blocks, "float64"),
    )
    residual, places = here.empty(n * classes, dtype), here.constant(tuple(bounds))
    launch = SOFTMAX if loss is None else POINT
    launch(
        blocks, *parts, told.array, residual, samples, labels, sample_weight, int(sample_weight.size > 0), weight,
        bias, places, features, classes, loss or 0, delta, T=dtype, X=samples.dtype,
    )  # fmt: skip
    return parts


def _summed(told: Told, weight_gradient: Any, bias_gradient: Any, parts: Parts, error: ValueError) -> float:
    sum_columns(weight_gradient.reshape(-1), parts.gradients)
    sum_columns(bias_gradient, parts.biases)
    fold_parts(told, parts.losses)
    return told.sum(error)
