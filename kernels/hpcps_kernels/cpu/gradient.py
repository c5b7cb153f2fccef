"""Losses of linear models and their gradients.

Samples go through in blocks that stay in the second-level cache between the scores and the gradient.
"""

from __future__ import annotations

import math

import numpy as np

from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.cpu._tiles import (
    CLASSES,
    ROWS,
    add_products,
    add_products_single,
    add_scores,
    add_scores_single,
)
from hpcps_kernels.interface import Array

BLOCK = 64  # samples, a multiple of 2 * ROWS
SINGLE_BLOCK = 16  # the same where a sample meets one row of weights only
PANEL = 1024  # features


@kernel
def softmax_loss_gradient(
    weight_gradient: Array, bias_gradient: Array, samples: Array, labels: Array, weight: Array, bias: Array
) -> float:
    weight_gradient[:] = 0
    bias_gradient[:] = 0
    residual = np.empty((BLOCK, bias.shape[0]), samples.dtype)
    loss = 0.0
    for start in range(0, samples.shape[0], BLOCK):
        block = samples[start : start + BLOCK]
        scores = residual[: block.shape[0]]
        _scores_of(scores, block, weight, bias)
        for i in range(block.shape[0]):
            loss += _softmax_residual(scores, i, labels[start + i])
        _add_gradient(weight_gradient, bias_gradient, residual, block)
    return loss


@part
def _scores_of(scores: Array, samples: Array, weight: Array, bias: Array) -> None:
    for i in range(scores.shape[0]):
        for k in range(scores.shape[1]):
            scores[i, k] = bias[k]
    for lo in range(0, samples.shape[1], PANEL):
        hi = min(lo + PANEL, samples.shape[1])
        for k in range(0, weight.shape[0], CLASSES):
            for i in range(0, samples.shape[0], ROWS):
                add_scores(scores, samples, weight, i, k, lo, hi)


@part
def _softmax_residual(scores: Array, i: int, label: int) -> float:
    """Turn the scores of sample i into softmax(scores) - [label] and return its loss."""
    if label < 0 or label >= scores.shape[1]:
        raise ValueError("softmax: a label is outside 0..K-1")
    one = scores.dtype.type(1)
    largest = scores[i, 0]
    for k in range(1, scores.shape[1]):
        largest = max(largest, scores[i, k])
    picked = np.float64(scores[i, label] - largest)
    total = one - one
    for k in range(scores.shape[1]):
        odds = math.exp(scores[i, k] - largest)
        scores[i, k] = odds
        total += odds
    share = one / total
    for k in range(scores.shape[1]):
        scores[i, k] *= share
    scores[i, label] -= one
    return math.log(np.float64(total)) - picked


@part
def _add_gradient(weight_gradient: Array, bias_gradient: Array, residual: Array, samples: Array) -> None:
    n = samples.shape[0]
    for i in range(n):
        for k in range(bias_gradient.shape[0]):
            bias_gradient[k] += residual[i, k]
    residual[n : n + ROWS] = 0  # the rest of the last tile
    for lo in range(0, samples.shape[1], PANEL):
        hi = min(lo + PANEL, samples.shape[1])
        for k in range(0, weight_gradient.shape[0], CLASSES):
            for i in range(0, n, ROWS):
                add_products(weight_gradient, residual, samples, i, k, lo, hi)


@kernel
def softmax_scores(scores: Array, samples: Array, weight: Array, bias: Array) -> None:
    _scores_of(scores, samples, weight, bias)


@kernel
def softmax_loss(scores: Array, labels: Array) -> float:
    loss = 0.0
    for i in range(scores.shape[0]):
        if labels[i] < 0 or labels[i] >= scores.shape[1]:
            raise ValueError("softmax: a label is outside 0..K-1")
        largest = scores[i, 0]
        for score in scores[i]:
            largest = max(largest, score)
        total = 0.0
        for score in scores[i]:
            total += math.exp(np.float64(score) - np.float64(largest))
        loss += math.log(total) - (np.float64(scores[i, labels[i]]) - np.float64(largest))
    return loss


@kernel
def linear_loss_gradient(
    weight_gradient: Array, bias_gradient: Array, samples: Array, labels: Array, weight: Array, bias: Array
) -> float:
    weight_gradient[:] = 0
    bias_gradient[0] = 0
    gradient, row = weight_gradient.reshape(1, weight.shape[0]), weight.reshape(1, weight.shape[0])
    residual = np.empty((SINGLE_BLOCK, 1), samples.dtype)
    loss = 0.0
    for start in range(0, samples.shape[0], SINGLE_BLOCK):
        block = samples[start : start + SINGLE_BLOCK]
        _single_scores(residual[: block.shape[0]], block, row, bias)
        for i in range(block.shape[0]):
            difference = np.float64(residual[i, 0]) - np.float64(labels[start + i])
            residual[i, 0] -= labels[start + i]
            loss += 0.5 * (difference * difference)
        _add_single_gradient(gradient, bias_gradient, residual, block)
    return loss


@kernel
def logistic_loss_gradient(
    weight_gradient: Array, bias_gradient: Array, samples: Array, labels: Array, weight: Array, bias: Array
) -> float:
    weight_gradient[:] = 0
    bias_gradient[0] = 0
    gradient, row = weight_gradient.reshape(1, weight.shape[0]), weight.reshape(1, weight.shape[0])
    residual = np.empty((SINGLE_BLOCK, 1), samples.dtype)
    loss = 0.0
    for start in range(0, samples.shape[0], SINGLE_BLOCK):
        block = samples[start : start + SINGLE_BLOCK]
        _single_scores(residual[: block.shape[0]], block, row, bias)
        for i in range(block.shape[0]):
            label, score = labels[start + i], np.float64(residual[i, 0])
            loss += _logistic(score, label)
            small = math.exp(-abs(score))
            sigmoid = 1 / (1 + small) if score >= 0 else small / (1 + small)
            residual[i, 0] = sigmoid - label
        _add_single_gradient(gradient, bias_gradient, residual, block)
    return loss


@part
def _logistic(score: float, label: int) -> float:
    if label != 0 and label != 1:
        raise ValueError("logistic: a label is neither 0 nor 1")
    positive = score if not score < 0 else 0.0
    return positive - label * score + math.log1p(math.exp(-abs(score)))


@part
def _single_scores(scores: Array, samples: Array, weight: Array, bias: Array) -> None:
    """scores (n, 1) of a weight (1, D)."""
    for i in range(scores.shape[0]):
        scores[i, 0] = bias[0]
    for i in range(0, samples.shape[0], 2 * ROWS):
        add_scores_single(scores, samples, weight, i, 0, 0, samples.shape[1])


@part
def _add_single_gradient(weight_gradient: Array, bias_gradient: Array, residual: Array, samples: Array) -> None:
    """Add to a weight_gradient (1, D)."""
    n = samples.shape[0]
    for i in range(n):
        bias_gradient[0] += residual[i, 0]
    residual[n : n + 2 * ROWS] = 0  # the rest of the last tile
    for i in range(0, n, 2 * ROWS):
        add_products_single(weight_gradient, residual, samples, i, 0, 0, samples.shape[1])


@kernel
def linear_scores(scores: Array, samples: Array, weight: Array, bias: Array) -> None:
    _single_scores(scores.reshape(scores.shape[0], 1), samples, weight.reshape(1, weight.shape[0]), bias)


@kernel
def linear_loss(scores: Array, labels: Array) -> float:
    loss = 0.0
    for i in range(scores.shape[0]):
        difference = np.float64(scores[i]) - np.float64(labels[i])
        loss += 0.5 * (difference * difference)
    return loss


@kernel
def logistic_loss(scores: Array, labels: Array) -> float:
    loss = 0.0
    for i in range(scores.shape[0]):
        loss += _logistic(np.float64(scores[i]), labels[i])
    return loss
