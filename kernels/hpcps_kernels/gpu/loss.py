"""Losses of scores, summed over the samples, and their residuals."""

from __future__ import annotations

from typing import Any

from hpcps_kernels.gpu._launch import FLOATS, THREADS, Launch, device, one_each
from hpcps_kernels.gpu._told import Told
from hpcps_kernels.gpu.reduce import fold_parts, lanes_for
from hpcps_kernels.spec import POINT_LOSSES

SAMPLES = 4 * THREADS  # of a block at least
SHARES = 1024  # blocks at most

_T = {"T": FLOATS}
_ARRAYS = "double *, double *, T *, const T *, const T *, i64, i64"
POINT = Launch("loss", "point", _ARRAYS + ", i64, double, i64", one_each, _T)
SOFTMAX = Launch("loss", "softmax", _ARRAYS.replace("const T *", "const i64 *", 1) + ", i64, i64, i64", one_each, _T)


def point_residual(scores: Any, labels: Any, sample_weight: Any, loss: int, delta: float) -> float:
    return _point(scores, labels, sample_weight, loss, delta, residuals=True)


def point_loss(scores: Any, labels: Any, sample_weight: Any, loss: int, delta: float) -> float:
    return _point(scores, labels, sample_weight, loss, delta, residuals=False)


def softmax_residual(scores: Any, labels: Any, sample_weight: Any) -> float:
    return _softmax(scores, labels, sample_weight, residuals=True)


def softmax_loss(scores: Any, labels: Any, sample_weight: Any) -> float:
    return _softmax(scores, labels, sample_weight, residuals=False)


def check_delta(loss: int, delta: float) -> None:
    if POINT_LOSSES[loss] == "huber" and not delta > 0:
        raise ValueError("huber: delta is not positive")


def label_error(loss: int | None) -> ValueError:
    """What is wrong with labels; ``loss`` None for softmax."""
    if loss is None:
        return ValueError("softmax: a label is outside 0..K-1")
    wanted = "not 0 or more" if POINT_LOSSES[loss] == "poisson" else "neither 0 nor 1"
    return ValueError(f"{POINT_LOSSES[loss]}: a label is {wanted}")


def point_into(
    told: Told, scores: Any, labels: Any, sample_weight: Any, loss: int, delta: float, residuals: bool
) -> None:
    """Launch it: told[0] becomes the loss."""
    n, weighted = labels.size, int(sample_weight.size > 0)
    parts = device().empty(_shares(n), "float64")
    POINT(
        parts.size, parts, told.array, scores, labels, sample_weight, weighted, n, loss, delta, int(residuals),
        T=scores.dtype,
    )  # fmt: skip
    fold_parts(told, parts)


def softmax_into(told: Told, scores: Any, labels: Any, sample_weight: Any, residuals: bool) -> None:
    """Launch it: told[0] becomes the loss."""
    (n, classes), weighted = scores.shape, int(sample_weight.size > 0)
    lanes = lanes_for(classes)
    parts = device().empty(_shares(n * lanes), "float64")
    SOFTMAX(
        parts.size, parts, told.array, scores, labels, sample_weight, weighted, n, classes, lanes, int(residuals),
        T=scores.dtype,
    )  # fmt: skip
    fold_parts(told, parts)


def _point(scores: Any, labels: Any, sample_weight: Any, loss: int, delta: float, residuals: bool) -> float:
    check_delta(loss, delta)
    told = Told()
    point_into(told, scores, labels, sample_weight, loss, delta, residuals)
    return told.sum(label_error(loss))


def _softmax(scores: Any, labels: Any, sample_weight: Any, residuals: bool) -> float:
    told = Told()
    softmax_into(told, scores, labels, sample_weight, residuals)
    return told.sum(label_error(None))


def _shares(threads: int) -> int:
    return min(-(-threads // SAMPLES), SHARES)
