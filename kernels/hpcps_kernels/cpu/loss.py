"""Losses of scores, and their residuals."""

from __future__ import annotations

import math

import numpy as np

from hpcps_kernels.cpu._exp import exp, log1p
from hpcps_kernels.cpu._jit import inlined, kernel, part
from hpcps_kernels.interface import Array
from hpcps_kernels.spec import POINT_LOSSES

SQUARED, HUBER, LOGISTIC, HINGE, SQUARED_HINGE, POISSON = range(len(POINT_LOSSES))
CHUNK = 256  # scores, or rows of them, at a time


@kernel
def point_residual(scores: Array, labels: Array, sample_weight: Array, loss: int, delta: float) -> float:
    check_delta(loss, delta)
    losses = np.zeros((2, CHUNK))
    for start in range(0, scores.shape[0], CHUNK):
        stop = start + CHUNK
        point_residuals(scores[start:stop], labels[start:stop], sample_weight[start:stop], loss, delta, losses)
    total: float = loss_sum(losses)
    return total


@kernel
def point_loss(scores: Array, labels: Array, sample_weight: Array, loss: int, delta: float) -> float:
    check_delta(loss, delta)
    losses = np.zeros((2, CHUNK))
    copied = np.empty(CHUNK, scores.dtype)
    for start in range(0, scores.shape[0], CHUNK):
        stop = min(start + CHUNK, scores.shape[0])
        chunk = copied[: stop - start]
        chunk[:] = scores[start:stop]
        point_residuals(chunk, labels[start:stop], sample_weight[start:stop], loss, delta, losses)
    total: float = loss_sum(losses)
    return total


@part
def check_delta(loss: int, delta: float) -> None:
    if loss == HUBER and not delta > 0:
        raise ValueError("huber: delta is not positive")


@part
def point_residuals(scores: Array, labels: Array, sample_weight: Array, loss: int, delta: float, losses: Array) -> None:
    """Scores become residuals; the loss of score i is added to losses[1, i]. `losses` is (2, >= n) float64."""
    n, each, sums = scores.shape[0], losses[0], losses[1]
    check_labels(labels, loss)
    if loss == SQUARED:
        for i in range(n):
            each[i], scores[i] = _squared(np.float64(scores[i]), np.float64(labels[i]))
    elif loss == HUBER:
        for i in range(n):
            each[i], scores[i] = _huber(np.float64(scores[i]), np.float64(labels[i]), delta)
    elif loss == LOGISTIC:
        for i in range(n):
            each[i], scores[i] = _logistic(np.float64(scores[i]), np.float64(labels[i]))
    elif loss == HINGE:
        for i in range(n):
            each[i], scores[i] = _hinge(np.float64(scores[i]), np.float64(labels[i]))
    elif loss == SQUARED_HINGE:
        for i in range(n):
            each[i], scores[i] = _squared_hinge(np.float64(scores[i]), np.float64(labels[i]))
    else:
        for i in range(n):
            each[i], scores[i] = _poisson(np.float64(scores[i]), np.float64(labels[i]))
    if sample_weight.shape[0] > 0:
        for i in range(n):
            scores[i] *= sample_weight[i]
            sums[i] += sample_weight[i] * each[i]
    else:
        for i in range(n):
            sums[i] += each[i]


@part
def loss_sum(losses: Array) -> float:
    total = 0.0
    for i in range(losses.shape[1]):
        total += losses[1, i]
    return total


@inlined
def point(score: float, label: float, loss: int, delta: float) -> tuple[float, float]:
    """Loss and residual of one score, in float64."""
    found: tuple[float, float]
    if loss == SQUARED:
        found = _squared(score, label)
    elif loss == HUBER:
        found = _huber(score, label, delta)
    elif loss == LOGISTIC:
        found = _logistic(score, label)
    elif loss == HINGE:
        found = _hinge(score, label)
    elif loss == SQUARED_HINGE:
        found = _squared_hinge(score, label)
    else:
        found = _poisson(score, label)
    return found


@part
def check_labels(labels: Array, loss: int) -> None:
    wrong = 0
    if loss in (LOGISTIC, HINGE, SQUARED_HINGE):
        for i in range(labels.shape[0]):
            wrong |= (labels[i] != 0) & (labels[i] != 1)
    elif loss == POISSON:
        for i in range(labels.shape[0]):
            wrong |= not labels[i] >= 0
    if wrong:
        if loss == LOGISTIC:
            raise ValueError("logistic: a label is neither 0 nor 1")
        if loss == HINGE:
            raise ValueError("hinge: a label is neither 0 nor 1")
        if loss == SQUARED_HINGE:
            raise ValueError("squared_hinge: a label is neither 0 nor 1")
        raise ValueError("poisson: a label is not 0 or more")


@inlined
def _squared(score: float, label: float) -> tuple[float, float]:
    r = score - label
    return 0.5 * (r * r), r


@inlined
def _huber(score: float, label: float, delta: float) -> tuple[float, float]:
    r = score - label
    line = delta * (abs(r) - 0.5 * delta)
    slope = delta if r > delta else -delta if r < -delta else r
    return 0.5 * (r * r) if abs(r) <= delta else line, slope


@inlined
def _logistic(score: float, label: float) -> tuple[float, float]:
    small = exp(-abs(score))
    sigmoid = (small if score < 0 else 1.0) / (1.0 + small)
    positive = 0.0 if score < 0 else score
    return positive - label * score + log1p(small), sigmoid - label


@inlined
def _hinge(score: float, label: float) -> tuple[float, float]:
    z = 2 * label - 1
    margin = 1 - z * score
    margin = 0.0 if margin <= 0 else margin
    return margin, -z if margin > 0 else margin


@inlined
def _squared_hinge(score: float, label: float) -> tuple[float, float]:
    z = 2 * label - 1
    margin = 1 - z * score
    margin = 0.0 if margin <= 0 else margin
    return margin * margin, -2 * z * margin


@inlined
def _poisson(score: float, label: float) -> tuple[float, float]:
    rate = exp(score)
    return rate - label * score, rate - label


@kernel
def softmax_residual(scores: Array, labels: Array, sample_weight: Array) -> float:
    total = 0.0
    for start in range(0, scores.shape[0], CHUNK):
        stop = start + CHUNK
        total += softmax_residuals(scores[start:stop], labels[start:stop], sample_weight[start:stop])
    return total


@part
def softmax_residuals(scores: Array, labels: Array, sample_weight: Array) -> float:
    """Scores (n, K) become residuals; returns the sum of the losses."""
    n, classes, one = scores.shape[0], scores.shape[1], scores.dtype.type(1)
    picked = np.empty(n, scores.dtype)
    for i in range(n):
        if labels[i] < 0 or labels[i] >= classes:
            raise ValueError("softmax: a label is outside 0..K-1")
        largest = _row_max(scores, i)
        for k in range(classes):
            scores[i, k] -= largest
        picked[i] = scores[i, labels[i]]
    flat = scores.reshape(scores.size)
    for j in range(flat.shape[0]):
        flat[j] = exp(flat[j])
    loss = 0.0
    for i in range(n):
        total = _row_sum(scores, i)
        weight = sample_weight[i] if sample_weight.shape[0] > 0 else one
        share = weight / total
        for k in range(classes):
            scores[i, k] *= share
        scores[i, labels[i]] -= weight
        loss += weight * (math.log(np.float64(total)) - np.float64(picked[i]))
    return loss


@inlined
def _row_max(x: Array, i: int) -> float:
    """The largest of a row; as `_row_sum`, in four strands, since one would wait for itself."""
    a = b = c = d = x[i, 0]
    whole = x.shape[1] // 4 * 4
    for k in range(0, whole, 4):
        a, b = max(a, x[i, k]), max(b, x[i, k + 1])
        c, d = max(c, x[i, k + 2]), max(d, x[i, k + 3])
    for k in range(whole, x.shape[1]):
        a = max(a, x[i, k])
    largest: float = max(max(a, b), max(c, d))
    return largest


@inlined
def _row_sum(x: Array, i: int) -> float:
    a = b = c = d = x.dtype.type(0)
    whole = x.shape[1] // 4 * 4
    for k in range(0, whole, 4):
        a += x[i, k]
        b += x[i, k + 1]
        c += x[i, k + 2]
        d += x[i, k + 3]
    for k in range(whole, x.shape[1]):
        a += x[i, k]
    total: float = (a + b) + (c + d)
    return total


@kernel
def softmax_loss(scores: Array, labels: Array, sample_weight: Array) -> float:
    loss = 0.0
    odds = np.empty((1, scores.shape[1]))
    for i in range(scores.shape[0]):
        if labels[i] < 0 or labels[i] >= scores.shape[1]:
            raise ValueError("softmax: a label is outside 0..K-1")
        largest = np.float64(_row_max(scores, i))
        for k in range(odds.shape[1]):
            odds[0, k] = exp(np.float64(scores[i, k]) - largest)
        total = _row_sum(odds, 0)
        weight = np.float64(sample_weight[i]) if sample_weight.shape[0] > 0 else 1.0
        loss += weight * (math.log(total) - (np.float64(scores[i, labels[i]]) - largest))
    return loss
