"""Bags against matrix products, their gradients against numerical derivatives, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hpcps_kernels import Kernels, load
from hpcps_kernels.spec import BAG_MODES

BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]
NOTHING = np.empty(0)
INDPTR, INDICES = np.array([0, 3, 3, 4, 9]), np.array([0, 4, 0, 2, 1, 2, 3, 4, 1], np.int32)


def problem(width: int, weighted: bool):
    """Values, a table of 5 rows, and the matrix (4, 5) that a sum over bags is."""
    rng = np.random.default_rng(width)
    values = rng.standard_normal(len(INDICES)) if weighted else NOTHING
    matrix = np.zeros((4, 5))
    bag = np.repeat(np.arange(4), np.diff(INDPTR))
    np.add.at(matrix, (bag, INDICES), values if weighted else 1.0)
    return values, rng.standard_normal((5, width)), matrix


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("mode", BAG_MODES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("width", [0, 1, 2, 3, 5, 8, 15, 16, 31, 100])
def test_bags_are_products_with_a_matrix_both_ways(kernels: Kernels, width: int, weighted: bool, mode: str) -> None:
    values, table, matrix = problem(width, weighted)
    if mode == "mean":
        matrix /= np.maximum(np.diff(INDPTR), 1)[:, None]
    out, back, gradient = np.empty((4, width)), np.empty((5, width)), np.cos(np.arange(4.0 * width)).reshape(4, width)
    kernels.bag_forward(out, INDPTR, INDICES, values, table, mode)
    np.testing.assert_allclose(out, matrix @ table, rtol=1e-12, atol=1e-12)
    assert not out[1].any()
    kernels.bag_backward(back, INDPTR, INDICES, values, gradient, mode)
    np.testing.assert_allclose(back, matrix.T @ gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_reaches_its_bags_and_no_others(kernels: Kernels, bad: float) -> None:
    _, table, matrix = problem(19, False)
    for column in range(19):
        dirty = table.copy()
        dirty[4, column] = bad
        out = np.empty((4, 19))
        kernels.bag_forward(out, INDPTR, INDICES, NOTHING, dirty, "sum")
        expected = np.zeros((4, 19), bool)
        expected[matrix[:, 4] > 0, column] = True
        assert np.array_equal(~np.isfinite(out), expected)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize(
    ("indptr", "wrong"),
    [
        (INDPTR, {8: 5}),
        (INDPTR, {0: -1}),
        (INDPTR, {3: -(2**31)}),
        (np.array([0, 3, 2, 4, 9]), {}),
        (np.array([-1, 3, 3, 4, 9]), {}),
        (np.array([0, 3, 3, 4, 10]), {}),
        (np.array([0, 3, 2**62, 4, 9]), {}),
    ],
)
def test_entries_out_of_range_are_refused_before_anything_is_written(kernels: Kernels, indptr, wrong) -> None:
    _, table, _ = problem(3, False)
    indices = INDICES.copy()
    for at, value in wrong.items():
        indices[at] = value
    out, back = np.full((4, 3), 7.0), np.full((5, 3), 7.0)
    with pytest.raises(IndexError, match="outside"):
        kernels.bag_forward(out, indptr, indices, NOTHING, table, "sum")
    with pytest.raises(IndexError, match="outside"):
        kernels.bag_backward(back, indptr, indices, NOTHING, np.ones((4, 3)), "mean")
    assert (out == 7).all()
    assert (back == 7).all()
