"""Grains in one call have the bits of grains in calls of their own, added in tree order."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hpcps_kernels import Kernels, load
from hpcps_kernels.cpu.gradient import BLOCK
from kernel_cases import FLOATS

CPU = load("cpu")
BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]
CLASSES, FEATURES = 7, 83
SIZES = [
    (8, 8, 8, 8, 8, 8, 8, 8),
    (3, 1, 0, 7, 5, 2, 4, 6),
    (BLOCK, 1, BLOCK + 1, 2, 3 * BLOCK, BLOCK - 1, 40, 40),
]
ADDS = {  # what the numbers say, written out
    (0, 1, 0, 2, 0, 1, 0, 3): lambda g: [((g[0] + g[1]) + (g[2] + g[3])) + ((g[4] + g[5]) + (g[6] + g[7]))],
    (0, 0, 1, 0, 0, 1, 1, 0): lambda g: [g[0], g[1] + g[2], g[3], (g[4] + g[5]) + g[6], g[7]],
    (0, 0, 0, 0, 0, 0, 0, 7): lambda g: [g[0] + (g[1] + (g[2] + (g[3] + (g[4] + (g[5] + (g[6] + g[7]))))))],
}


def softmax(kernels: Kernels, dtype: str, sizes: tuple[int, ...]):
    rng = np.random.default_rng(3)
    samples = rng.standard_normal((sum(sizes), FEATURES)).astype(dtype)
    labels = rng.integers(0, CLASSES, sum(sizes))
    weight, bias = rng.standard_normal((CLASSES, FEATURES)).astype(dtype), rng.standard_normal(CLASSES).astype(dtype)

    def call(part: slice, bounds, adds):
        stack, losses = np.full((9, CLASSES * (FEATURES + 1)), np.nan, dtype), np.full(len(adds), np.nan)
        unweighted = np.empty(0, dtype)
        kernels.softmax_grains(stack, losses, samples[part], labels[part], unweighted, weight, bias, bounds, adds)
        return stack, losses

    return call


def dense(kernels: Kernels, dtype: str, sizes: tuple[int, ...]):
    rng = np.random.default_rng(4)
    samples = rng.standard_normal((sum(sizes), FEATURES)).astype(dtype)
    labels = rng.standard_normal(sum(sizes)).astype(dtype)
    weight, bias = rng.standard_normal(FEATURES).astype(dtype), rng.standard_normal(1).astype(dtype)

    def call(part: slice, bounds, adds):
        stack, losses = np.full((9, FEATURES + 1), np.nan, dtype), np.full(len(adds), np.nan)
        data = samples[part], labels[part], np.empty(0, dtype), weight, bias
        kernels.dense_grains(stack, losses, *data, bounds, adds, "huber", 0.5)
        return stack, losses

    return call


def layer(kernels: Kernels, dtype: str, sizes: tuple[int, ...]):
    rng = np.random.default_rng(5)
    delta = rng.standard_normal((sum(sizes), CLASSES)).astype(dtype)
    x = rng.standard_normal((sum(sizes), FEATURES)).astype(dtype)

    def call(part: slice, bounds, adds):
        stack = np.zeros((9, CLASSES * (FEATURES + 1) + 5), dtype)
        kernels.layer_grains(stack, delta[part], x[part], bounds, adds, 5)
        assert not stack[:, :5].any()
        return stack, np.zeros(len(adds))

    return call


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("adds", ADDS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("make", [softmax, dense, layer])
def test_the_bits_of_grains_alone_added_in_tree_order(make, sizes, adds, dtype) -> None:
    call = make(CPU, dtype, sizes)
    bounds = np.cumsum([0, *sizes])
    alone = [call(slice(low, high), np.array([0, high - low]), np.array([0])) for low, high in pairwise(bounds)]
    stack, losses = call(slice(None), bounds, np.array(adds))
    wanted = ADDS[adds]([one[0][0] for one in alone])
    assert [row.tobytes() for row in stack[: len(wanted)]] == [one.tobytes() for one in wanted]
    assert losses.tolist() == [one[1][0] for one in alone]


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("make", [softmax, dense, layer])
def test_what_does_not_fit_is_refused(kernels, make) -> None:
    call = make(kernels, "float32", (4, 4))
    good = np.array([0, 4, 8])
    for bounds in ([0, 5, 4], [1, 4, 8], [0, 4, 7], [0, 9, 8]):
        with pytest.raises(ValueError, match="bounds must rise from 0 to the number of samples"):
            call(slice(None), np.array(bounds), np.array([0, 0]))
    for adds in ([1, 0], [0, 2], [0, -1]):
        with pytest.raises(ValueError, match="adds of what is not on the stack"):
            call(slice(None), good, np.array(adds))
    many = np.array([0] * 10 + [8])
    with pytest.raises(ValueError, match="the stack has too few rows"):
        call(slice(None), many, np.zeros(10, np.int64))


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_a_row_of_the_stack_must_hold_the_gradient(kernels) -> None:
    zeros, one = np.zeros((4, 3), np.float32), (np.array([0, 4]), np.array([0]))
    nothing, losses = np.empty(0, np.float32), np.empty(1)
    data = zeros, np.zeros(4, np.int64), nothing, np.zeros((2, 3), np.float32), np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="softmax_grains: a row of the stack"):
        kernels.softmax_grains(np.zeros((1, 7), np.float32), losses, *data, *one)
    data = zeros, np.zeros(4, np.float32), nothing, np.zeros(3, np.float32), np.zeros(1, np.float32)
    with pytest.raises(ValueError, match="dense_grains: a row of the stack"):
        kernels.dense_grains(np.zeros((1, 3), np.float32), losses, *data, *one, "squared", 1.0)
    for at in (-1, 2):
        with pytest.raises(ValueError, match="layer_grains: the layer does not fit"):
            kernels.layer_grains(np.zeros((1, 9), np.float32), np.zeros((4, 2), np.float32), zeros, *one, at)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_sums_in_tree_order_name_rows_and_leave_as_many_as_there_is_room_for(kernels) -> None:
    xs = np.float32([[1], [2**-24], [2**-24], [5]])
    out = np.empty((1, 1), np.float32)
    kernels.sum_tree(out, xs, np.array([0, 1, 2]), np.array([0, 0, 2]))
    assert out == np.float32(1 + 2**-23)
    kernels.sum_tree(out, xs, np.array([0, 1, 2]), np.array([0, 1, 1]))
    assert out == 1
    with pytest.raises(ValueError, match="another number of sums"):
        kernels.sum_tree(out, xs, np.array([0, 1]), np.array([0, 0]))
    with pytest.raises(IndexError, match=r"a row is outside 0\.\.R-1"):
        kernels.sum_tree(out, xs, np.array([0, 4]), np.array([0, 1]))


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_all_finite_finds_every_place(kernels, dtype) -> None:
    assert kernels.all_finite(np.empty(0, dtype))
    assert kernels.all_finite(np.full(70, np.finfo(dtype).max))
    for at in range(70):
        for bad in (np.nan, np.inf, -np.inf):
            x = np.ones(70, dtype)
            x[at] = bad
            assert not kernels.all_finite(x)
