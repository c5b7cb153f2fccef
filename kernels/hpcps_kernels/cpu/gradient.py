"""Linear models of dense samples: scores and the gradients of losses.

Samples go through in blocks that stay in the second-level cache between the scores and the gradient.
"""

from __future__ import annotations

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
from hpcps_kernels.cpu.loss import check_delta, loss_sum, point_residuals, softmax_residuals
from hpcps_kernels.interface import Array

BLOCK = 64  # samples, a multiple of 2 * ROWS
SINGLE_BLOCK = 16  # the same, at least, where a sample meets one row of weights only; more where samples are short
SINGLE_BLOCK_VALUES = 1 << 14
PANEL = 1024  # features


def dense_loss_gradient(
    weight_gradient: Array,
    bias_gradient: Array,
    samples: Array,
    labels: Array,
    sample_weight: Array,
    weight: Array,
    bias: Array,
    loss: int,
    delta: float,
) -> float:
    total: float = dense_pass(
        weight_gradient, bias_gradient, compiled(samples), labels, sample_weight, weight, bias, loss, delta
    )
    return total


def softmax_loss_gradient(
    weight_gradient: Array,
    bias_gradient: Array,
    samples: Array,
    labels: Array,
    sample_weight: Array,
    weight: Array,
    bias: Array,
) -> float:
    total: float = softmax_pass(weight_gradient, bias_gradient, compiled(samples), labels, sample_weight, weight, bias)
    return total


def dense_scores(scores: Array, samples: Array, weight: Array, bias: Array) -> None:
    dense_score_pass(scores, compiled(samples), weight, bias)


def softmax_scores(scores: Array, samples: Array, weight: Array, bias: Array) -> None:
    softmax_score_pass(scores, compiled(samples), weight, bias)


def compiled(samples: Array) -> Array:
    """Samples as compiled code takes them: Numba has no float16, so their bits go in as uint16."""
    return samples.view(np.uint16) if samples.dtype.char == "e" else samples


@kernel
def softmax_pass(
    weight_gradient: Array,
    bias_gradient: Array,
    samples: Array,
    labels: Array,
    sample_weight: Array,
    weight: Array,
    bias: Array,
) -> float:
    weight_gradient[:] = 0
    bias_gradient[:] = 0
    residual = np.empty((BLOCK, bias.shape[0]), weight.dtype)
    loss = 0.0
    for start in range(0, samples.shape[0], BLOCK):
        stop = start + BLOCK
        block = samples[start:stop]
        scores = residual[: block.shape[0]]
        _scores_of(scores, block, weight, bias)
        loss += softmax_residuals(scores, labels[start:stop], sample_weight[start:stop])
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
def softmax_score_pass(scores: Array, samples: Array, weight: Array, bias: Array) -> None:
    _scores_of(scores, samples, weight, bias)


@kernel
def dense_pass(
    weight_gradient: Array,
    bias_gradient: Array,
    samples: Array,
    labels: Array,
    sample_weight: Array,
    weight: Array,
    bias: Array,
    loss: int,
    delta: float,
) -> float:
    total: float = dense_gradient(
        weight_gradient, bias_gradient, samples, labels, sample_weight, weight, bias, loss, delta
    )
    return total


@part
def dense_gradient(
    weight_gradient: Array,
    bias_gradient: Array,
    samples: Array,
    labels: Array,
    sample_weight: Array,
    weight: Array,
    bias: Array,
    loss: int,
    delta: float,
) -> float:
    """Overwrites weight_gradient and bias_gradient, returns the loss."""
    check_delta(loss, delta)
    weight_gradient[:] = 0
    bias_gradient[0] = 0
    gradient, row = weight_gradient.reshape(1, weight.shape[0]), weight.reshape(1, weight.shape[0])
    fitting = SINGLE_BLOCK_VALUES // max(weight.shape[0], 1) // SINGLE_BLOCK * SINGLE_BLOCK
    rows = max(SINGLE_BLOCK, min(fitting, BLOCK))
    residual = np.empty((rows, 1), weight.dtype)
    losses = np.zeros((2, rows))
    for start in range(0, samples.shape[0], rows):
        stop = start + rows
        block = samples[start:stop]
        scores = residual[: block.shape[0]]
        _single_scores(scores, block, row, bias)
        point_residuals(
            scores.reshape(block.shape[0]), labels[start:stop], sample_weight[start:stop], loss, delta, losses
        )
        _add_single_gradient(gradient, bias_gradient, residual, block)
    total: float = loss_sum(losses)
    return total


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
def dense_score_pass(scores: Array, samples: Array, weight: Array, bias: Array) -> None:
    _single_scores(scores.reshape(scores.shape[0], 1), samples, weight.reshape(1, weight.shape[0]), bias)
