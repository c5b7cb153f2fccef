"""The losses against numerical derivatives and against scikit-learn, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hpcps_kernels import Kernels, load

BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]
MODELS = ("linear", "logistic", "softmax")
N, D, K = 23, 11, 4


def problem(model: str, dtype=np.float64) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Samples, labels, weight and bias."""
    rng = np.random.default_rng(7)
    classes = (K,) if model == "softmax" else ()
    samples = rng.standard_normal((N, D)).astype(dtype)
    weight, bias = rng.standard_normal((*classes, D)), rng.standard_normal(classes or 1)
    labels = rng.standard_normal(N) if model == "linear" else rng.integers(0, K if classes else 2, N)
    return samples, labels.astype(dtype) if model == "linear" else labels, weight.astype(dtype), bias.astype(dtype)


def scores_of(kernels: Kernels, model: str, samples, weight, bias) -> np.ndarray:
    scores = np.empty((N, K) if model == "softmax" else N, samples.dtype)
    (kernels.softmax_scores if model == "softmax" else kernels.linear_scores)(scores, samples, weight, bias)
    return scores


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("model", MODELS)
def test_gradient_is_the_derivative_of_the_loss(kernels: Kernels, model: str) -> None:
    samples, labels, weight, bias = problem(model)
    loss_gradient = getattr(kernels, f"{model}_loss_gradient")
    gradients = np.empty_like(weight), np.empty_like(bias)
    loss_gradient(*gradients, samples, labels, weight, bias)
    unused = np.empty_like(weight), np.empty_like(bias)
    for gradient, params in zip(gradients, (weight, bias), strict=True):
        for at in np.ndindex(params.shape):
            kept, h = params[at], 1e-6
            params[at] = kept + h
            above = loss_gradient(*unused, samples, labels, weight, bias)
            params[at] = kept - h
            below = loss_gradient(*unused, samples, labels, weight, bias)
            params[at] = kept
            assert gradient[at] == pytest.approx((above - below) / (2 * h), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("model", MODELS)
def test_loss_of_scores_is_the_loss_with_the_gradient(kernels: Kernels, model: str, dtype) -> None:
    samples, labels, weight, bias = problem(model, dtype)
    scores = scores_of(kernels, model, samples, weight, bias)
    loss = getattr(kernels, f"{model}_loss")(scores, labels)
    gradients = np.empty_like(weight), np.empty_like(bias)
    together = getattr(kernels, f"{model}_loss_gradient")(*gradients, samples, labels, weight, bias)
    assert together == pytest.approx(loss, rel=100 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("model", MODELS)
def test_losses_agree_with_scikit_learn(kernels: Kernels, model: str, dtype) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    samples, labels, weight, bias = problem(model, dtype)
    scores = scores_of(kernels, model, samples, weight, bias).astype(np.float64)
    if model == "linear":
        wanted = 0.5 * N * metrics.mean_squared_error(labels, scores)
    elif model == "logistic":
        wanted = metrics.log_loss(labels, 1 / (1 + np.exp(-scores)), normalize=False)
    else:
        odds = np.exp(scores)
        wanted = metrics.log_loss(labels, odds / odds.sum(1, keepdims=True), normalize=False, labels=range(K))
    gradients = np.empty_like(weight), np.empty_like(bias)
    loss = getattr(kernels, f"{model}_loss_gradient")(*gradients, samples, labels, weight, bias)
    assert loss == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_scores_neither_overflow_nor_vanish(kernels: Kernels, dtype) -> None:
    scores, labels = np.array([1e4, -1e4, 1e4, -1e4], dtype), np.array([1, 0, 0, 1])
    assert kernels.logistic_loss(scores, labels) == pytest.approx(2e4)
    wide = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0]], dtype)
    assert kernels.softmax_loss(wide, np.array([0, 0])) == pytest.approx(2e4)
    gradient, bias_gradient = np.empty(1, dtype), np.empty(1, dtype)
    loss = kernels.logistic_loss_gradient(
        gradient, bias_gradient, scores.reshape(4, 1), labels, np.ones(1, dtype), np.zeros(1, dtype)
    )
    assert loss == pytest.approx(2e4)
    assert gradient[0] == pytest.approx(2e4)
    assert bias_gradient[0] == 0


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("bad", [-1, K, 2**40])
@pytest.mark.parametrize("model", ["logistic", "softmax"])
def test_a_label_out_of_range_is_an_error(kernels: Kernels, model: str, bad: int) -> None:
    samples, labels, weight, bias = problem(model)
    scores = scores_of(kernels, model, samples, weight, bias)
    labels[N // 2] = bad
    gradients = np.empty_like(weight), np.empty_like(bias)
    with pytest.raises(ValueError, match="label"):
        getattr(kernels, f"{model}_loss_gradient")(*gradients, samples, labels, weight, bias)
    with pytest.raises(ValueError, match="label"):
        getattr(kernels, f"{model}_loss")(scores, labels)
