"""Factorization machines and matrix factorisation against their definitions and numerical derivatives."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hpcps_kernels import Kernels, load
from hpcps_kernels.spec import POINT_LOSSES

BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]
NOTHING = np.empty(0)
RANKS = (1, 2, 4, 9, 17, 33)
INDPTR, INDICES = np.array([0, 3, 3, 4, 9]), np.array([0, 4, 0, 2, 1, 2, 3, 4, 1], np.int32)
USERS, ITEMS = np.array([0, 2, 2, 1, 0], np.int32), np.array([3, 3, 0, 1, 2], np.int32)


def machine(rank: int, weighted: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rank)
    return {
        "indptr": INDPTR,
        "indices": INDICES,
        "values": rng.standard_normal(len(INDICES)) if weighted else NOTHING,
        "labels": np.array([1.0, 0, 1, 0]),
        "sample_weight": rng.random(4) if weighted else NOTHING,
        "table": 0.5 * rng.standard_normal((5, rank)),
        "bias": rng.standard_normal(1),
    }


def factorisation(rank: int, weighted: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rank)
    return {
        "users": USERS,
        "items": ITEMS,
        "labels": np.array([1.0, 0, 1, 0, 0]),
        "sample_weight": rng.random(5) if weighted else NOTHING,
        "user": 0.5 * rng.standard_normal((3, rank)),
        "item": 0.5 * rng.standard_normal((4, rank)),
        "bias": rng.standard_normal(1),
    }


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rank", RANKS)
def test_a_factorization_machine_sums_over_all_pairs(kernels: Kernels, rank: int, weighted: bool) -> None:
    given = machine(rank, weighted)
    table, expected = given["table"], np.empty(4)
    for i in range(4):
        entries = range(INDPTR[i], INDPTR[i + 1])
        x = given["values"] if weighted else np.ones(9)
        expected[i] = given["bias"][0] + sum(x[e] * table[INDICES[e], 0] for e in entries)
        for e, f in combinations(entries, 2):
            expected[i] += x[e] * x[f] * (table[INDICES[e], 1:] @ table[INDICES[f], 1:])
    scores = np.empty(4)
    kernels.fm_scores(scores, INDPTR, INDICES, given["values"], table, given["bias"])
    np.testing.assert_allclose(scores, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("rank", RANKS)
def test_matrix_factorisation_is_a_product_and_three_biases(kernels: Kernels, rank: int) -> None:
    given = factorisation(rank, False)
    user, item, scores = given["user"], given["item"], np.empty(5)
    kernels.mf_scores(scores, USERS, ITEMS, user, item, given["bias"])
    everything = given["bias"] + user[:, :1] + item[:, 0] + user[:, 1:] @ item[:, 1:].T
    np.testing.assert_allclose(scores, everything[USERS, ITEMS], rtol=1e-12)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("loss", POINT_LOSSES)
@pytest.mark.parametrize("rank", [1, 4, 9])
@pytest.mark.parametrize(
    ("kernel", "make", "trained"),
    [("fm_loss_gradient", machine, ("table", "bias")), ("mf_loss_gradient", factorisation, ("user", "item", "bias"))],
)
def test_gradients_are_numerical_derivatives(kernels: Kernels, kernel, make, trained, rank: int, loss: str) -> None:
    given = make(rank, True)
    call = getattr(kernels, kernel)
    gradients = [np.empty_like(given[name]) for name in trained]
    unused = [np.empty_like(given[name]) for name in trained]
    call(*gradients, *given.values(), loss, 0.6)
    for name, gradient in zip(trained, gradients, strict=True):
        params = given[name]
        for at in np.ndindex(params.shape):
            kept, h = params[at], 1e-6
            params[at] = kept + h
            above = call(*unused, *given.values(), loss, 0.6)
            params[at] = kept - h
            below = call(*unused, *given.values(), loss, 0.6)
            params[at] = kept
            assert gradient[at] == pytest.approx((above - below) / (2 * h), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_reaches_the_loss(kernels: Kernels, bad: float) -> None:
    for make, kernel, trained in (
        (machine, kernels.fm_loss_gradient, ("table", "bias")),
        (factorisation, kernels.mf_loss_gradient, ("user", "item", "bias")),
    ):
        for name in trained:
            for at in np.ndindex(make(9, True)[name].shape):
                given = make(9, True)
                given[name][at] = bad
                gradients = [np.empty_like(given[other]) for other in trained]
                with np.errstate(invalid="ignore"):
                    assert not np.isfinite(kernel(*gradients, *given.values(), "squared", 1.0))


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_what_is_out_of_range_is_refused_before_anything_is_written(kernels: Kernels) -> None:
    for make, name, trained in (
        (machine, "fm", ("table", "bias")),
        (factorisation, "mf", ("user", "item", "bias")),
    ):
        numbers = ("indices",) if name == "fm" else ("users", "items")
        for of in numbers:
            for number in (-1, 5, 2**31 - 1):
                given = make(4, True)
                given[of] = given[of].copy()
                given[of][-1] = number
                gradients = [np.full_like(given[other], 7) for other in trained]
                with pytest.raises(IndexError, match="outside"):
                    getattr(kernels, f"{name}_loss_gradient")(*gradients, *given.values(), "squared", 1.0)
                assert all((gradient == 7).all() for gradient in gradients)
                forward = [v for key, v in given.items() if key not in ("labels", "sample_weight")]
                with pytest.raises(IndexError, match="outside"):
                    getattr(kernels, f"{name}_scores")(np.empty(len(given["labels"])), *forward)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_labels_delta_and_tables_that_cannot_be_used_are_refused(kernels: Kernels) -> None:
    for make, kernel, trained in (
        (machine, kernels.fm_loss_gradient, ("table", "bias")),
        (factorisation, kernels.mf_loss_gradient, ("user", "item", "bias")),
    ):
        given = make(4, False)
        gradients = [np.empty_like(given[name]) for name in trained]
        with pytest.raises(ValueError, match="delta"):
            kernel(*gradients, *given.values(), "huber", 0.0)
        given["labels"][1] = 0.5
        with pytest.raises(ValueError, match="label"):
            kernel(*gradients, *given.values(), "logistic", 1.0)
        given = make(4, False) | {name: np.empty((len(make(4, False)[name]), 0)) for name in trained[:-1]}
        gradients = [np.empty_like(given[name]) for name in trained]
        with pytest.raises(ValueError, match="linear weight"):
            kernel(*gradients, *given.values(), "squared", 1.0)
