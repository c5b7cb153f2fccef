"""Losses of scores, summed over the samples, and their residuals: the derivatives by the scores.

n samples, K classes; F is float32 or float64, the same for all float arrays of one call. Losses are taken in
float64. `sample_weight` multiplies a sample's loss and residual; with length 0 every weight is 1. `delta` is
where the Huber loss turns from a parabola into a line; the other losses do not use it.

| loss | labels y | loss of a score s | residual |
|---|---|---|---|
| squared | any | (s - y)^2 / 2 | s - y |
| huber | any | r^2 / 2 where abs(r) <= delta, else delta (abs(r) - delta / 2); r = s - y | r within +-delta |
| logistic | 0, 1 | log(1 + exp(s)) - y s | sigmoid(s) - y |
| hinge | 0, 1 | max(0, 1 - z s), z = 2 y - 1 | -z where z s < 1, else 0 |
| squared_hinge | 0, 1 | max(0, 1 - z s)^2 | -2 z max(0, 1 - z s) |
| poisson | >= 0 | exp(s) - y s; s is the log of the rate | exp(s) - y |

Huber 1964; the others as in Hastie, Tibshirani and Friedman 2009, sections 4.4 and 10.6, and McCullagh and Nelder
1989, chapter 6, without the term of the Poisson loss that does not depend on s. A nan score makes loss and residual
nan; an infinite one makes them infinite or nan, except that a hinge loss is 0 where the infinite score is right.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hpcps_kernels.interface import Array
from hpcps_kernels.spec import POINT_LOSSES


def point_residual(scores: Array, labels: Array, sample_weight: Array, loss: int, delta: float) -> float:
    """scores become sample_weight * d loss / d score; returns the weighted sum of the losses.

    scores, labels (n,) F; sample_weight (n,) F or empty; `loss` is one of the table. Raises ValueError for a label
    that the loss does not take, or a Huber delta that is not positive; scores are then undefined.
    """
    losses, residual = _point(scores, labels, loss, delta)
    weights = _weights(sample_weight, len(scores))
    with np.errstate(over="ignore"):
        scores[:] = residual.astype(scores.dtype) * weights
    return float((losses * weights).sum())


def point_loss(scores: Array, labels: Array, sample_weight: Array, loss: int, delta: float) -> float:
    """The weighted sum of the losses that `point_residual` returns, with the same arguments; scores are kept."""
    losses, _ = _point(scores, labels, loss, delta)
    return float((losses * _weights(sample_weight, len(scores))).sum())


def softmax_residual(scores: Array, labels: Array, sample_weight: Array) -> float:
    """scores become sample_weight * (softmax(scores) - [k = label]); returns the cross-entropy, weighted and summed.

    scores (n, K) F; labels (n,) int64 in 0..K-1; sample_weight (n,) F or empty (Bishop 2006, eq. 4.109).
    Raises ValueError for a label out of range; scores are then undefined.
    """
    total = softmax_loss(scores, labels, sample_weight)
    odds = np.exp(scores - _row_max(scores))
    odds /= odds.sum(axis=1, keepdims=True)
    odds[np.arange(len(labels)), labels] -= 1
    scores[:] = odds * _weights(sample_weight, len(labels))[:, None]
    return total


def softmax_loss(scores: Array, labels: Array, sample_weight: Array) -> float:
    """The cross-entropy of softmax(scores), weighted and summed; arguments as of `softmax_residual`, scores are kept.

    log(sum exp(s)) - s_y, with the largest score taken out first. Raises ValueError for a label out of range.
    """
    if ((labels < 0) | (labels >= scores.shape[1])).any():
        raise ValueError("softmax: a label is outside 0..K-1")
    s = scores.astype(np.float64)
    s -= _row_max(s)
    picked = s[np.arange(len(labels)), labels]
    losses = np.log(np.exp(s).sum(axis=1)) - picked
    return float((losses * _weights(sample_weight, len(labels))).sum())


def _weights(sample_weight: Array, n: int) -> Array:
    return sample_weight if len(sample_weight) else np.ones(n, sample_weight.dtype)


def _row_max(scores: Array) -> Array:
    largest: Array = np.max(scores, axis=1, keepdims=True, initial=-np.inf)
    return largest


def _point(scores: Array, labels: Array, loss: int, delta: float) -> tuple[Array, Array]:
    """Losses and residuals (n,) in float64."""
    name = POINT_LOSSES[loss]
    if name == "huber" and not delta > 0:
        raise ValueError("huber: delta is not positive")
    if name == "poisson" and not (labels >= 0).all():
        raise ValueError("poisson: a label is not 0 or more")
    if name in ("logistic", "hinge", "squared_hinge") and not ((labels == 0) | (labels == 1)).all():
        raise ValueError(f"{name}: a label is neither 0 nor 1")
    return _FORMULAS[name](scores.astype(np.float64), labels.astype(np.float64), delta)


def _squared(s: Array, y: Array, delta: float) -> tuple[Array, Array]:
    r = s - y
    return 0.5 * (r * r), r


def _huber(s: Array, y: Array, delta: float) -> tuple[Array, Array]:
    r = s - y
    return np.where(np.abs(r) <= delta, 0.5 * (r * r), delta * (np.abs(r) - 0.5 * delta)), np.clip(r, -delta, delta)


def _logistic(s: Array, y: Array, delta: float) -> tuple[Array, Array]:
    small = np.exp(-np.abs(s))  # never overflows
    sigmoid = np.where(s >= 0, 1, small) / (1 + small)
    return np.maximum(s, 0) - y * s + np.log1p(small), sigmoid - y


def _hinge(s: Array, y: Array, delta: float) -> tuple[Array, Array]:
    z = 2 * y - 1
    margin = np.maximum(0, 1 - z * s)
    return margin, np.where(margin > 0, -z, margin)


def _squared_hinge(s: Array, y: Array, delta: float) -> tuple[Array, Array]:
    z = 2 * y - 1
    margin = np.maximum(0, 1 - z * s)
    return margin * margin, -2 * z * margin


def _poisson(s: Array, y: Array, delta: float) -> tuple[Array, Array]:
    with np.errstate(over="ignore"):
        rate = np.exp(s)
    return rate - y * s, rate - y


_FORMULAS: dict[str, Callable[[Array, Array, float], tuple[Array, Array]]] = {
    "squared": _squared,
    "huber": _huber,
    "logistic": _logistic,
    "hinge": _hinge,
    "squared_hinge": _squared_hinge,
    "poisson": _poisson,
}
