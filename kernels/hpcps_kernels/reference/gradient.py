"""Linear models of dense samples: their scores, and the gradients of their losses as sums over the samples.

n samples, D features, K classes; F is float32 or float64, the same for all arrays that are not said to be of another
dtype. Samples are float32, float64, float16, uint8 or int8, and are converted to F. Losses, labels, sample_weight
and delta are those of `loss`.
"""

from __future__ import annotations

from hpcps_kernels.interface import Array
from hpcps_kernels.reference.loss import point_residual, softmax_residual


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
    """The loss of samples @ weight + bias, weighted and summed; overwrites weight_gradient and bias_gradient.

    weight_gradient, weight (D,); bias_gradient, bias (1,); samples (n, D); labels (n,) F; sample_weight (n,) or empty.
    d loss / d weight = residual @ samples (Bishop 2006, eq. 3.13). Raises ValueError as `point_residual` does.
    """
    x = samples.astype(weight.dtype)
    residual = x @ weight + bias
    total = point_residual(residual, labels, sample_weight, loss, delta)
    weight_gradient[:] = residual @ x
    bias_gradient[0] = residual.sum()
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
    """Cross-entropy of softmax(samples @ weight.T + bias), weighted and summed; overwrites weight_gradient and
    bias_gradient.

    weight_gradient, weight (K, D); bias_gradient, bias (K,); samples (n, D); labels (n,) int64 in 0..K-1;
    sample_weight (n,) or empty. Raises ValueError for a label out of range.
    """
    x = samples.astype(weight.dtype)
    residual = x @ weight.T + bias
    total = softmax_residual(residual, labels, sample_weight)
    weight_gradient[:] = residual.T @ x
    bias_gradient[:] = residual.sum(axis=0)
    return total


def dense_scores(scores: Array, samples: Array, weight: Array, bias: Array) -> None:
    """scores = samples @ weight + bias; scores (n,), samples (n, D), weight (D,), bias (1,)."""
    scores[:] = samples.astype(weight.dtype) @ weight + bias


def softmax_scores(scores: Array, samples: Array, weight: Array, bias: Array) -> None:
    """scores = samples @ weight.T + bias, without softmax; scores (n, K), samples (n, D), weight (K, D), bias (K,)."""
    scores[:] = samples.astype(weight.dtype) @ weight.T + bias
