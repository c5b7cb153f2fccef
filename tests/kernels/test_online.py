"""Online passes: what they converge to, published updates, long runs, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hpcps_kernels import Kernels, load
from hpcps_kernels.spec import POINT_LOSSES

BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]
CPU = load("cpu")
SCALARS = {"online_sgd": (0.05, 0.0), "online_adagrad": (0.2, 0.0, 0.0), "online_ftrl": (0.2, 1.0, 0.0, 0.0)}
FIELDS, D = 6, 40
NONE = np.empty(0)


def fresh(kernel: str, features: int = D, dtype=np.float64) -> tuple[np.ndarray, np.ndarray]:
    pair = () if kernel == "online_sgd" else (2,)
    return np.zeros((features, *pair), dtype), np.zeros(pair or 1, dtype)


def samples(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of FIELDS ones and labels that a linear model explains in part."""
    rng = np.random.default_rng(seed)
    columns = (D * rng.random((n, FIELDS)) ** 3).astype(np.int32)
    truth = np.random.default_rng(9).standard_normal(D)
    labels = (rng.random(n) < 1 / (1 + np.exp(-truth[columns].sum(1)))).astype(np.float64)
    return FIELDS * np.arange(n + 1), columns.reshape(-1), labels


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("kernel", SCALARS)
def test_a_pass_learns_and_repeats_itself(kernels: Kernels, kernel: str) -> None:
    n = 600
    indptr, indices, labels = samples(n)
    order = np.random.default_rng(1).permutation(n)
    results = []
    for _ in range(2):
        state, bias = fresh(kernel)
        run = getattr(kernels, kernel)
        losses = [
            run(state, bias, indptr, indices, NONE, labels, part, "logistic", 1.0, *SCALARS[kernel])
            for part in np.split(order, 3)
        ]
        assert losses[0] / (n // 3) < np.log(2) + 0.1
        assert losses[2] < 0.9 * losses[0]
        results.append((losses, state.tobytes(), bias.tobytes()))
    assert results[0] == results[1]


@pytest.mark.parametrize("kernel", SCALARS)
@pytest.mark.parametrize("loss", POINT_LOSSES)
def test_parts_of_a_pass_are_the_pass(kernel: str, loss: str) -> None:
    n = 1000
    indptr, indices, labels = samples(n)
    whole, parts = fresh(kernel), fresh(kernel)
    run, order = getattr(CPU, kernel), np.arange(n)
    rest = loss, 0.5, *(number / 4 for number in SCALARS[kernel])
    wanted = run(*whole, indptr, indices, NONE, labels, order, *rest)
    got = sum(run(*parts, indptr, indices, NONE, labels, part, *rest) for part in np.array_split(order, 7))
    assert got == pytest.approx(wanted, rel=1e-12)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_one_step_of_each_by_hand(kernels: Kernels) -> None:
    one = np.array([0, 2]), np.array([1, 2], np.int32), np.array([2.0, -1.0]), np.array([1.0]), np.array([0])
    weight, bias = np.array([9.0, 0.5, 0.25]), np.array([0.125])  # score 0.875, residual -0.125
    loss = kernels.online_sgd(weight, bias, *one, "squared", 1.0, 0.5, 0.25)
    assert loss == 0.125**2 / 2
    assert weight.tolist() == [9, 0.5 - 0.5 * (-0.25 + 0.125), 0.25 - 0.5 * (0.125 + 0.0625)]
    assert bias.tolist() == [0.1875]

    state, bias = np.array([[9.0, 9], [0.5, 0.1], [0.25, 0.2]]), np.array([0.125, 0.3])
    kernels.online_adagrad(state, bias, *one, "squared", 1.0, 0.5, 0.01, 0.0)
    for got, w, a, g in zip(
        [*state[1:], bias], (0.5, 0.25, 0.125), (0.1, 0.2, 0.3), (-0.25, 0.125, -0.125), strict=True
    ):
        np.testing.assert_allclose(got, [w - 0.5 * g / (np.sqrt(a + g * g) + 0.01), a + g * g], rtol=1e-14)
    assert state[0].tolist() == [9, 9]

    alpha, beta, l1, l2 = 0.5, 1.0, 0.2, 0.1
    before = np.array([[9.0, 9], [0.6, 0.1], [-0.1, 0.2]])
    state, bias = before.copy(), np.zeros(2)
    w = np.array([-(0.6 - l1) / ((beta + np.sqrt(0.1)) / alpha + l2), 0])
    residual = 2 * w[0] - 1
    assert kernels.online_ftrl(state, bias, *one, "squared", 1.0, alpha, beta, l1, l2) == pytest.approx(residual**2 / 2)
    g, n = residual * np.array([2, -1]), before[1:, 1]
    sigma = (np.sqrt(n + g * g) - np.sqrt(n)) / alpha
    np.testing.assert_allclose(state[1:], np.stack([before[1:, 0] + g - sigma * w, n + g * g], 1), rtol=1e-14)
    np.testing.assert_allclose(bias, [residual, residual**2], rtol=1e-14)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("kernel", SCALARS)
def test_columns_named_twice_step_twice(kernels: Kernels, kernel: str) -> None:
    """The second entry steps from where the first one led to."""
    run, scalars = getattr(kernels, kernel), SCALARS[kernel]
    labels, index = np.array([3.0]), np.array([0])
    state, bias = fresh(kernel, 2)
    run(state, bias, np.array([0, 3]), np.array([1, 0, 1], np.int32), NONE, labels, index, "squared", 1.0, *scalars)
    once = state[0]
    if kernel == "online_sgd":
        np.testing.assert_allclose(state[1], once + once * (1 - scalars[0] * scalars[1]), rtol=1e-15)
    elif kernel == "online_adagrad":
        assert state[1, 1] > once[1]
        assert once[0] < state[1, 0] < 2 * once[0]
    else:
        np.testing.assert_allclose(state[1], 2 * once, rtol=1e-15)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_nothing_is_divided_by_zero(kernels: Kernels) -> None:
    rows = np.array([0, 2]), np.array([0, 1], np.int32), np.array([0.0, 1.0]), np.array([0.0]), np.array([0])
    for kernel, scalars in (("online_adagrad", (0.1, 0.0, 0.0)), ("online_ftrl", (0.1, 0.0, 0.0, 0.0))):
        state, bias = fresh(kernel, 2)
        for _ in range(3):
            assert getattr(kernels, kernel)(state, bias, *rows, "squared", 1.0, *scalars) == 0
        assert not state.any()
        assert not bias.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", SCALARS)
@pytest.mark.parametrize("loss", ["logistic", "hinge", "huber"])
def test_long_runs_stay_finite(kernel: str, loss: str, dtype) -> None:
    indptr, indices, labels = samples(2000)
    state, bias = fresh(kernel, dtype=dtype)
    order = np.tile(np.arange(2000), 250)
    rest = loss, 0.5, *SCALARS[kernel]
    mean = getattr(CPU, kernel)(state, bias, indptr, indices, NONE, labels.astype(dtype), order, *rest) / len(order)
    assert np.isfinite(state).all()
    assert np.isfinite(bias).all()
    assert 0 < mean < 1


def test_ftrl_leaves_out_features_that_do_not_matter() -> None:
    indptr, indices, labels = samples(3000)
    rng = np.random.default_rng(2)
    noise = (D + rng.integers(0, 200, len(labels))).astype(np.int32)
    indices = np.column_stack([indices.reshape(-1, FIELDS), noise]).reshape(-1).astype(np.int32)
    indptr = (FIELDS + 1) * np.arange(len(labels) + 1)
    state, bias = fresh("online_ftrl", D + 200)
    CPU.online_ftrl(state, bias, indptr, indices, NONE, labels, np.arange(3000), "logistic", 1.0, 0.2, 1.0, 6.0, 0.0)
    zero = np.abs(state[:, 0]) <= 6
    assert zero[D:].mean() > 0.9
    assert zero[:D].mean() < 0.7


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("kernel", SCALARS)
def test_nan_reaches_the_loss(kernels: Kernels, kernel: str) -> None:
    indptr, indices, labels = samples(20)
    values = np.ones(len(indices))
    values[50] = np.nan
    state, bias = fresh(kernel)
    rest = "logistic", 1.0, *SCALARS[kernel]
    assert np.isnan(getattr(kernels, kernel)(state, bias, indptr, indices, values, labels, np.arange(20), *rest))
    assert np.isnan(state[indices[50]]).any()


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("kernel", SCALARS)
def test_malformed_samples_are_an_error(kernels: Kernels, kernel: str) -> None:
    def refused(error, says: str, indptr, indices, labels, index=np.arange(20)) -> None:  # noqa: B008
        state, bias = fresh(kernel)
        with pytest.raises(error, match=says):
            getattr(kernels, kernel)(
                state, bias, indptr, indices, NONE, labels, index, "logistic", 1.0, *SCALARS[kernel]
            )

    indptr, indices, labels = samples(20)
    for bad in (-1, 20, 2**62):
        refused(IndexError, "an index is outside", indptr, indices, labels, np.array([0, bad]))
    for at, bound in ((0, -1), (3, 2**62), (20, len(indices) + 1), (7, 0)):
        damaged = indptr.copy()
        damaged[at] = bound
        refused(IndexError, "entries outside", damaged, indices, labels)
    for at in (0, 5, len(indices) - 1):
        for column in (-1, D):
            damaged = indices.copy()
            damaged[at] = column
            refused(IndexError, "columns outside", indptr, damaged, labels)
    for at in (0, 5, 19):
        damaged = labels.copy()
        damaged[at] = 0.5
        refused(ValueError, "logistic: a label is", indptr, indices, damaged)
