"""The losses against numerical derivatives, definitions and scikit-learn; dense models; and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hpcps_kernels import Kernels, load
from hpcps_kernels.spec import DTYPES, POINT_LOSSES
from kernel_cases.loss import point_labels

BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]
MODELS = (*POINT_LOSSES, "softmax")
FLOATS = (np.float32, np.float64)
N, D, K = 23, 11, 4
DELTA = 0.7


class Problem:
    """Samples, labels, weights and parameters of a linear model with one of the losses."""

    def __init__(self, kernels: Kernels, model: str, dtype=np.float64, samples=None) -> None:
        rng = np.random.default_rng(7)
        self.kernels, self.model, self.softmax = kernels, model, model == "softmax"
        classes = (K,) if self.softmax else ()
        self.samples = rng.standard_normal((N, D)).astype(dtype) if samples is None else samples
        self.weight = (0.5 * rng.standard_normal((*classes, D))).astype(dtype)
        self.bias = rng.standard_normal(classes or 1).astype(dtype)
        labels = rng.integers(0, K, N) if self.softmax else point_labels(model)(N, dtype, rng).astype(dtype)
        self.labels = labels
        self.sample_weight = (rng.random(N) + 0.1).astype(dtype)
        self.scalars = () if self.softmax else (model, DELTA)

    def scores(self) -> np.ndarray:
        scores = np.empty((N, K) if self.softmax else N, self.weight.dtype)
        kernel = self.kernels.softmax_scores if self.softmax else self.kernels.dense_scores
        kernel(scores, self.samples, self.weight, self.bias)
        return scores

    def loss_gradient(self) -> tuple[float, np.ndarray, np.ndarray]:
        gradients = np.empty_like(self.weight), np.empty_like(self.bias)
        kernel = self.kernels.softmax_loss_gradient if self.softmax else self.kernels.dense_loss_gradient
        data = self.samples, self.labels, self.sample_weight
        return kernel(*gradients, *data, self.weight, self.bias, *self.scalars), *gradients

    def loss(self, scores: np.ndarray) -> float:
        kernel = self.kernels.softmax_loss if self.softmax else self.kernels.point_loss
        return kernel(scores, self.labels, self.sample_weight, *self.scalars)

    def residual(self) -> tuple[float, np.ndarray]:
        scores = self.scores()
        kernel = self.kernels.softmax_residual if self.softmax else self.kernels.point_residual
        return kernel(scores, self.labels, self.sample_weight, *self.scalars), scores


def derivatives(function, params: np.ndarray, h: float = 1e-6) -> np.ndarray:
    found = np.empty_like(params)
    for at in np.ndindex(params.shape):
        kept = params[at]
        params[at] = kept + h
        above = function()
        params[at] = kept - h
        found[at] = (above - function()) / (2 * h)
        params[at] = kept
    return found


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("model", MODELS)
def test_gradient_is_the_derivative_of_the_loss(kernels: Kernels, model: str) -> None:
    problem = Problem(kernels, model)
    _, weight_gradient, bias_gradient = problem.loss_gradient()
    for gradient, params in ((weight_gradient, problem.weight), (bias_gradient, problem.bias)):
        wanted = derivatives(lambda: problem.loss_gradient()[0], params)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("model", MODELS)
def test_residual_is_the_derivative_by_the_scores(kernels: Kernels, model: str) -> None:
    problem = Problem(kernels, model)
    scores = problem.scores()
    loss, residual = problem.residual()
    assert loss == pytest.approx(problem.loss(scores), rel=1e-12)
    np.testing.assert_allclose(residual, derivatives(lambda: problem.loss(scores), scores), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("model", MODELS)
def test_loss_of_scores_is_the_loss_with_the_gradient(kernels: Kernels, model: str, dtype) -> None:
    problem = Problem(kernels, model, dtype)
    eps = float(np.finfo(dtype).eps)
    assert problem.loss_gradient()[0] == pytest.approx(problem.loss(problem.scores()), rel=100 * eps)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("model", MODELS)
def test_a_weight_counts_a_sample_as_often(kernels: Kernels, model: str) -> None:
    problem = Problem(kernels, model)
    problem.sample_weight[:] = np.arange(N) % 3
    weighted = problem.loss_gradient()
    often = np.repeat(np.arange(N), np.arange(N) % 3)
    problem.samples, problem.labels = problem.samples[often], problem.labels[often]
    problem.sample_weight = np.empty(0)
    for with_weights, repeated in zip(weighted, problem.loss_gradient(), strict=True):
        np.testing.assert_allclose(with_weights, repeated, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("model", ["squared", "logistic", "hinge", "softmax"])
def test_losses_agree_with_scikit_learn(kernels: Kernels, model: str, dtype) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    problem = Problem(kernels, model, dtype)
    scores, labels, weights = problem.scores().astype(np.float64), problem.labels, problem.sample_weight
    if model == "squared":
        mean = 0.5 * metrics.mean_squared_error(labels, scores, sample_weight=weights)
    elif model == "logistic":
        mean = metrics.log_loss(labels, 1 / (1 + np.exp(-scores)), sample_weight=weights)
    elif model == "hinge":
        mean = metrics.hinge_loss(labels, scores, sample_weight=weights)
    else:
        odds = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        mean = metrics.log_loss(labels, odds, sample_weight=weights, labels=range(K))
    assert problem.loss_gradient()[0] == pytest.approx(mean * weights.sum(), rel=1e-5)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_poisson_loss_is_half_the_deviance_and_a_constant(kernels: Kernels) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    problem = Problem(kernels, "poisson")
    y, scores, weights = problem.labels, problem.scores(), problem.sample_weight
    deviance = metrics.mean_poisson_deviance(y, np.exp(scores), sample_weight=weights) * weights.sum()
    saturated = (weights * (y - np.where(y > 0, y * np.log(np.maximum(y, 1)), 0))).sum()
    assert problem.loss(scores) == pytest.approx(deviance / 2 + saturated, rel=1e-12)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_at_the_minimum_of_scikit_learns_poisson_regressor_the_gradient_is_zero(kernels: Kernels) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    problem = Problem(kernels, "poisson")
    theirs = linear_model.PoissonRegressor(alpha=0, tol=1e-10, max_iter=1000)
    theirs.fit(problem.samples, problem.labels, problem.sample_weight)
    problem.weight[:], problem.bias[:] = theirs.coef_, theirs.intercept_
    _, *gradients = problem.loss_gradient()
    np.testing.assert_allclose(np.concatenate(gradients), 0, atol=1e-5)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_hinges_and_huber_at_their_corners(kernels: Kernels, dtype) -> None:
    none = np.empty(0, dtype)

    def found(loss: str, scores: list[float], labels: list[float], delta: float = 1.0) -> tuple[float, list[float]]:
        residual = np.array(scores, dtype)
        return kernels.point_residual(residual, np.array(labels, dtype), none, loss, delta), residual.tolist()

    assert found("hinge", [1, -1, 0.5, -0.5, 0, 0, 3], [1, 0, 1, 0, 1, 0, 0]) == (7, [0, 0, -1, 1, -1, 1, 1])
    assert found("squared_hinge", [1, -1, 0.5, 0, 3], [1, 0, 1, 0, 0]) == (17.25, [0, 0, -1, 2, 8])
    assert found("huber", [2, -2, 0.5, 5, -5], [0] * 5, 2) == (4.125 + 16, [2, -2, 0.5, 2, -2])


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_large_scores_neither_overflow_nor_vanish(kernels: Kernels, dtype) -> None:
    scores, labels, none = np.array([1e4, -1e4, 1e4, -1e4], dtype), np.array([1, 0, 0, 1], dtype), np.empty(0, dtype)
    assert kernels.point_loss(scores, labels, none, "logistic", 1) == pytest.approx(2e4)
    wide = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0]], dtype)
    assert kernels.softmax_loss(wide, np.array([0, 0]), none) == pytest.approx(2e4)
    assert kernels.softmax_residual(wide, np.array([0, 0]), none) == pytest.approx(2e4)
    np.testing.assert_array_equal(wide, [[0, 0, 0], [-1, 1, 0]])
    assert kernels.point_residual(scores, labels, none, "logistic", 1) == pytest.approx(2e4)
    np.testing.assert_array_equal(scores, [0, 0, 1, -1])
    rates = np.array([-1e4, 1e4], dtype)
    assert kernels.point_residual(rates, np.zeros(2, dtype), none, "poisson", 1) == np.inf
    np.testing.assert_array_equal(rates, [0, np.inf])


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("model", MODELS)
def test_nan_reaches_loss_and_gradient(kernels: Kernels, model: str, dtype) -> None:
    for at in range(N):
        problem = Problem(kernels, model, dtype)
        problem.samples[at, at % D] = np.nan
        loss, weight_gradient, bias_gradient = problem.loss_gradient()
        assert np.isnan(loss)
        assert np.isnan(weight_gradient).any()
        assert np.isnan(bias_gradient).any()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("model", MODELS)
def test_inf_reaches_the_loss(kernels: Kernels, model: str, dtype) -> None:
    for sign in (-1, 1):
        problem = Problem(kernels, model, dtype)
        scores = problem.scores()
        scores[N // 2] = sign * np.inf
        if "hinge" in model:  # one of the two infinite scores is simply right
            wrong = problem.labels[N // 2] == (sign < 0)
            assert np.isinf(problem.loss(scores)) == wrong
        elif (model, sign) != ("poisson", -1):
            assert not np.isfinite(problem.loss(scores))


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("stored", DTYPES["X"])
@pytest.mark.parametrize("model", ["squared", "softmax"])
def test_samples_are_converted_as_astype_does(kernels: Kernels, model: str, stored: str, dtype) -> None:
    rng = np.random.default_rng(1)
    low, high = (-128, 128) if stored == "int8" else (0, 256)
    samples = rng.integers(low, high, (N, D)) / (8 if stored.startswith("float") else 1)
    samples.reshape(-1)[:2] = (low, high - 1)
    if stored == "float16":
        samples.reshape(-1)[2:6] = (6e-8, -65504, 6.1e-5, 0.333)  # denormal, largest, least normal
    samples = samples.astype(stored)
    before = samples.copy()
    narrow = Problem(kernels, model, dtype, samples)
    wide = Problem(kernels, model, dtype, samples.astype(dtype))
    np.testing.assert_array_equal(narrow.scores(), wide.scores())
    for a, b in zip(narrow.loss_gradient(), wide.loss_gradient(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(samples, before, strict=True)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize(
    ("model", "bad"),
    [
        *((model, bad) for model in ("logistic", "hinge", "squared_hinge") for bad in (-1, 2, 0.5, np.nan, np.inf)),
        ("poisson", -1),
        ("poisson", np.nan),
        *(("softmax", bad) for bad in (-1, K, 2**40)),
    ],
)
def test_a_label_that_the_loss_does_not_take_is_an_error(kernels: Kernels, model: str, bad: float) -> None:
    problem = Problem(kernels, model)
    scores = problem.scores()
    problem.labels[N // 2] = bad
    for refused in (problem.loss_gradient, problem.residual, lambda: problem.loss(scores)):
        with pytest.raises(ValueError, match=f"^{model}: a label is"):
            refused()


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("delta", [0.0, -1.0, np.nan])
def test_a_huber_delta_must_be_positive(kernels: Kernels, delta: float) -> None:
    scores = np.zeros(3)
    for kernel in (kernels.point_residual, kernels.point_loss):
        with pytest.raises(ValueError, match="huber: delta is not positive"):
            kernel(scores, scores.copy(), np.empty(0), "huber", delta)
        kernel(scores, scores.copy(), np.empty(0), "squared", delta)


@pytest.mark.parametrize("dtype", FLOATS)
def test_exp_and_log1p_are_those_of_the_library(dtype) -> None:
    import numba
    from hpcps_kernels.cpu import _exp

    @numba.njit
    def each(out, x, with_exp):
        for i in range(x.shape[0]):
            out[i] = _exp.exp(x[i]) if with_exp else _exp.log1p(x[i])

    lowest, highest = _exp.EXP_RANGE[8 * np.dtype(dtype).itemsize]
    x = np.concatenate([np.linspace(lowest, np.floor(highest), 100_001), [0, -0.0, 1e-30, np.inf, -np.inf, np.nan]])
    x = x.astype(dtype)
    got = np.empty_like(x)
    each(got, x, True)
    np.testing.assert_allclose(got, np.exp(x), rtol=3 * np.finfo(dtype).eps, atol=0)
    each(got, np.array([lowest - 1, -1e4, highest + 1, 1e4], dtype), True)
    np.testing.assert_array_equal(got[:4], [0, 0, np.inf, np.inf])
    x = np.concatenate([np.linspace(0, 1, 100_001), [1e-30, 1e-8]]).astype(dtype)
    got = np.empty_like(x)
    each(got, x, False)
    np.testing.assert_allclose(got, np.log1p(x), rtol=4 * np.finfo(dtype).eps, atol=0)
