"""Sparse samples against dense ones, numerical derivatives and SciPy; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hpcps_kernels import Kernels, load
from hpcps_kernels.spec import POINT_LOSSES
from kernel_cases.loss import point_labels

BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]
MODELS = (*POINT_LOSSES, "softmax")
FLOATS = (np.float32, np.float64)
N, D, K = 70, 13, 4
DELTA = 0.7


class Problem:
    """Sparse samples, the same ones dense, and a model of each."""

    def __init__(self, kernels: Kernels, model: str, dtype=np.float64, with_values: bool = True) -> None:
        rng = np.random.default_rng(3)
        self.kernels, self.softmax, self.scalars = kernels, model == "softmax", (model, DELTA)
        if self.softmax:
            self.scalars = ()
        self.dense = np.where(rng.random((N, D)) < 0.3, rng.standard_normal((N, D)), 0).astype(dtype)
        self.dense[5] = 0
        if not with_values:
            self.dense[self.dense != 0] = 1
        rows, columns = self.dense.nonzero()
        self.indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=N))])
        self.indices = columns.astype(np.int32)
        self.values = self.dense[rows, columns] if with_values else np.empty(0, dtype)
        outputs = (K,) if self.softmax else ()
        self.weight = (0.5 * rng.standard_normal((D, *outputs))).astype(dtype)
        self.bias = rng.standard_normal(outputs or 1).astype(dtype)
        labels = rng.integers(0, K, N) if self.softmax else point_labels(model)(N, dtype, rng).astype(dtype)
        self.labels, self.sample_weight = labels, (rng.random(N) + 0.1).astype(dtype)

    def scores(self) -> np.ndarray:
        scores = np.empty((N, K) if self.softmax else N, self.weight.dtype)
        kernel = self.kernels.csr_softmax_scores if self.softmax else self.kernels.csr_scores
        kernel(scores, self.indptr, self.indices, self.values, self.weight, self.bias)
        return scores

    def loss_gradient(self):
        gradients = np.empty_like(self.weight), np.empty_like(self.bias)
        kernel = self.kernels.csr_softmax_loss_gradient if self.softmax else self.kernels.csr_loss_gradient
        rows, labels = (self.indptr, self.indices, self.values), (self.labels, self.sample_weight)
        return kernel(*gradients, *rows, *labels, self.weight, self.bias, *self.scalars), *gradients

    def dense_loss_gradient(self):
        weight = np.ascontiguousarray(self.weight.T)
        gradients = np.empty_like(weight), np.empty_like(self.bias)
        kernel = self.kernels.softmax_loss_gradient if self.softmax else self.kernels.dense_loss_gradient
        data = self.dense, self.labels, self.sample_weight
        loss = kernel(*gradients, *data, weight, self.bias, *self.scalars)
        return loss, gradients[0].T, gradients[1]


@pytest.mark.parametrize("with_values", [True, False])
@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("model", MODELS)
def test_sparse_is_dense(kernels: Kernels, model: str, dtype, with_values: bool) -> None:
    problem = Problem(kernels, model, dtype, with_values)
    within = 200 * np.finfo(dtype).eps
    np.testing.assert_allclose(problem.scores(), problem.dense @ problem.weight + problem.bias, atol=within)
    for sparse, dense in zip(problem.loss_gradient(), problem.dense_loss_gradient(), strict=True):
        np.testing.assert_allclose(sparse, dense, rtol=within, atol=10 * within)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("model", MODELS)
def test_gradient_is_the_derivative_of_the_loss(kernels: Kernels, model: str) -> None:
    problem, h = Problem(kernels, model), 1e-6
    _, *gradients = problem.loss_gradient()
    for gradient, params in zip(gradients, (problem.weight, problem.bias), strict=True):
        for at in np.ndindex(params.shape):
            kept = params[at]
            params[at] = kept + h
            above = problem.loss_gradient()[0]
            params[at] = kept - h
            below = problem.loss_gradient()[0]
            params[at] = kept
            assert gradient[at] == pytest.approx((above - below) / (2 * h), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("model", MODELS)
def test_nan_reaches_loss_and_gradient(kernels: Kernels, model: str, dtype) -> None:
    for at in (0, 100, -1):
        problem = Problem(kernels, model, dtype)
        problem.values[at] = np.nan
        loss, weight_gradient, bias_gradient = problem.loss_gradient()
        assert np.isnan(loss)
        assert np.isnan(weight_gradient).any()
        assert np.isnan(bias_gradient).any()


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("model", ["logistic", "softmax"])
def test_rows_may_begin_and_end_within_the_entries(kernels: Kernels, model: str) -> None:
    problem = Problem(kernels, model)
    wanted = problem.scores()
    problem.indptr = problem.indptr + 3
    problem.indices = np.pad(problem.indices, (3, 5), constant_values=-7)
    problem.values = np.pad(problem.values, (3, 5), constant_values=np.nan)
    np.testing.assert_array_equal(problem.scores(), wanted)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("model", ["logistic", "softmax"])
@pytest.mark.parametrize("damage", ["before", "descending", "after", "negative column", "large column", "jump"])
def test_malformed_rows_are_an_error(kernels: Kernels, model: str, damage: str) -> None:
    problem = Problem(kernels, model)
    if damage == "before":
        problem.indptr[0] = -1
    elif damage == "descending":
        problem.indptr[N // 2] = problem.indptr[N // 2 + 1] + 1
    elif damage == "after":
        problem.indptr[-1] = len(problem.indices) + 1
    elif damage == "jump":
        problem.indptr[N // 2] = 2**62
    else:
        problem.indices[100] = -1 if damage == "negative column" else D
    for refused in (problem.scores, problem.loss_gradient):
        with pytest.raises(IndexError, match="entries outside"):
            refused()


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize(("model", "bad"), [("logistic", 2), ("poisson", -1), ("softmax", K)])
def test_a_label_that_the_loss_does_not_take_is_an_error(kernels: Kernels, model: str, bad: int) -> None:
    problem = Problem(kernels, model)
    problem.labels[N - 1] = bad
    with pytest.raises(ValueError, match=f"^{model}: a label is"):
        problem.loss_gradient()


def take(kernels: Kernels, rows, index, scale, entries: int):
    out = np.empty(len(index) + 1, np.int64), np.empty(entries, np.int32), np.empty(entries, scale.dtype)
    kernels.csr_take(*out, *rows, index, scale, len(scale))
    return out


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("stored", FLOATS)
def test_rows_are_taken_as_scipy_does(kernels: Kernels, dtype, stored) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    problem = Problem(kernels, "squared", stored)
    rng = np.random.default_rng(5)
    index, scale = rng.integers(0, N, 200), rng.standard_normal(D).astype(dtype)
    theirs = sparse.csr_matrix((problem.values, problem.indices, problem.indptr), (N, D))[index]
    rows = problem.indptr, problem.indices, problem.values
    indptr, indices, values = take(kernels, rows, index, scale, theirs.nnz)
    np.testing.assert_array_equal(indptr, theirs.indptr)
    np.testing.assert_array_equal(indices, theirs.indices)
    np.testing.assert_array_equal(values, theirs.data.astype(dtype) * scale[theirs.indices])


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_taking_what_is_not_there_is_an_error(kernels: Kernels) -> None:
    indptr, indices, values = np.array([0, 2, 2, 5]), np.arange(5, dtype=np.int32), np.ones(5)
    scale = np.ones(5)
    for bad in (-1, 3, 2**62):
        with pytest.raises(IndexError, match="an index is outside"):
            take(kernels, (indptr, indices, values), np.array([0, bad]), scale, 4)
    for entries in (4, 6):
        with pytest.raises(ValueError, match="more or fewer entries"):
            take(kernels, (indptr, indices, values), np.array([2, 0]), scale, entries)
    for damaged in ([0, 2, 1, 5], [0, 2, 2, 6], [-1, 2, 2, 5]):
        with pytest.raises(IndexError, match="entries outside"):
            take(kernels, (np.array(damaged), indices, values), np.array([0, 1, 2]), scale, 5)
    for column in (-1, 5):
        indices[3] = column
        with pytest.raises(IndexError, match="columns outside"):
            take(kernels, (indptr, indices, values), np.array([2]), scale, 3)
