"""Losses of linear models, their gradients and their scores, as sums over the samples.

n samples, D features, K classes; F is float32 or float64, the same for all float arrays of one call.
"""

from __future__ import annotations

import numpy as np

from hpcps_kernels.interface import Array


def linear_loss_gradient(
    weight_gradient: Array, bias_gradient: Array, samples: Array, labels: Array, weight: Array, bias: Array
) -> float:
    """Half the squared error of samples @ weight + bias, summed; overwrites weight_gradient and
    bias_gradient.

    weight_gradient, weight (D,) F; bias_gradient, bias (1,) F; samples (n, D) F; labels (n,) F.
    loss = sum (s - y)^2 / 2, d loss / d s = s - y (Bishop 2006, eq. 3.12).
    """
    scores = samples @ weight + bias
    residual = scores - labels
    weight_gradient[:] = residual @ samples
    bias_gradient[0] = residual.sum()
    return linear_loss(scores, labels)


def logistic_loss_gradient(
    weight_gradient: Array, bias_gradient: Array, samples: Array, labels: Array, weight: Array, bias: Array
) -> float:
    """Binary cross-entropy of sigmoid(samples @ weight + bias), summed; overwrites weight_gradient,
    bias_gradient.

    weight_gradient, weight (D,) F; bias_gradient, bias (1,) F; samples (n, D) F; labels (n,) int64, 0 or 1.
    d loss / d s = sigmoid(s) - y (Bishop 2006, eq. 4.91). Raises ValueError for any other label.
    """
    scores = samples @ weight + bias
    loss = logistic_loss(scores, labels)
    small = np.exp(-np.abs(scores))
    sigmoid = np.where(scores >= 0, 1 / (1 + small), small / (1 + small))
    residual = (sigmoid - labels).astype(samples.dtype)
    weight_gradient[:] = residual @ samples
    bias_gradient[0] = residual.sum()
    return loss


def softmax_loss_gradient(
    weight_gradient: Array, bias_gradient: Array, samples: Array, labels: Array, weight: Array, bias: Array
) -> float:
    """Cross-entropy of softmax(samples @ weight.T + bias), summed; overwrites weight_gradient and
    bias_gradient.

    weight_gradient, weight (K, D) F; bias_gradient, bias (K,) F; samples (n, D) F; labels (n,) int64 in
    0..K-1. d loss / d s_k = softmax(s)_k - [y = k] (Bishop 2006, eq. 4.109). Raises ValueError for a label
    out of range.
    """
    scores = samples @ weight.T + bias
    loss = softmax_loss(scores, labels)
    residual = np.exp(scores - _row_max(scores))
    residual /= residual.sum(axis=1, keepdims=True)
    residual[np.arange(len(labels)), labels] -= 1
    weight_gradient[:] = residual.T @ samples
    bias_gradient[:] = residual.sum(axis=0)
    return loss


def linear_scores(scores: Array, samples: Array, weight: Array, bias: Array) -> None:
    """scores = samples @ weight + bias; scores (n,), samples (n, D), weight (D,), bias (1,), all F."""
    scores[:] = samples @ weight + bias


def softmax_scores(scores: Array, samples: Array, weight: Array, bias: Array) -> None:
    """scores = samples @ weight.T + bias, without softmax; scores (n, K), weight (K, D), bias (K,), all F."""
    scores[:] = samples @ weight.T + bias


def linear_loss(scores: Array, labels: Array) -> float:
    """Half the squared error, summed in float64; scores (n,) F, labels (n,) F."""
    residual = scores.astype(np.float64) - labels
    return float(0.5 * (residual * residual).sum())


def logistic_loss(scores: Array, labels: Array) -> float:
    """Binary cross-entropy of sigmoid(scores), summed in float64; scores (n,) F, labels (n,) int64, 0 or 1.

    log(1 + exp(s)) - y s, written so that exp never overflows. Raises ValueError for any other label.
    """
    if ((labels != 0) & (labels != 1)).any():
        raise ValueError("logistic: a label is neither 0 nor 1")
    s = scores.astype(np.float64)
    return float((np.maximum(s, 0) - labels * s + np.log1p(np.exp(-np.abs(s)))).sum())


def softmax_loss(scores: Array, labels: Array) -> float:
    """Cross-entropy of softmax(scores), summed in float64; scores (n, K) F, labels (n,) int64 in 0..K-1.

    log(sum exp(s)) - s_y, with the largest score taken out first. Raises ValueError for a label out of range.
    """
    if ((labels < 0) | (labels >= scores.shape[1])).any():
        raise ValueError("softmax: a label is outside 0..K-1")
    s = scores.astype(np.float64)
    s -= _row_max(s)
    picked = s[np.arange(len(labels)), labels]
    return float((np.log(np.exp(s).sum(axis=1)) - picked).sum())


def _row_max(scores: Array) -> Array:
    largest: Array = np.max(scores, axis=1, keepdims=True, initial=-np.inf)
    return largest
