"""Optimiser steps that add up their gradient as they go: the bits of the sum, then the step."""

from __future__ import annotations

import numpy as np
import pytest
from hpcps_kernels import SPECS, Kernels, load
from kernel_cases.update import SCALARS

BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]
CPU = load("cpu")


def numbers(name: str) -> list[float]:
    given = {**SCALARS[name], "l1": 0.02, "l2": 0.1}
    return [given[argument.name] for argument in SPECS[name].scalars]


def written(name: str, count: int, dtype: str) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random(count).astype(dtype) for argument in SPECS[name].arrays if argument.is_written]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gradients", [2, 3, 8])
@pytest.mark.parametrize("name", SCALARS)
def test_bits_are_those_of_the_sum_and_the_step(name: str, gradients: int, dtype: str) -> None:
    given = np.random.default_rng(1).standard_normal((gradients, 6000)).astype(dtype)
    together, apart = written(name, 5000, dtype), written(name, 5000, dtype)
    total = np.empty(5000, dtype)
    for first in (0, 17, 1000):
        CPU.sum_into(total, np.ascontiguousarray(given[:, first : first + 5000]))
        getattr(CPU, name)(*apart, total, *numbers(name))
        getattr(CPU, f"{name}_summed")(*together, given, first, *numbers(name))
        for one, other in zip(together, apart, strict=True):
            np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("name", SCALARS)
def test_gradients_that_are_not_there_are_refused(kernels: Kernels, name: str) -> None:
    arrays = written(name, 5, "float64")
    for first in (-1, 3, 9):
        with pytest.raises(ValueError, match="too few columns"):
            getattr(kernels, f"{name}_summed")(*arrays, np.ones((2, 7)), first, *numbers(name))
    for few in (0, 1):
        with pytest.raises(ValueError, match="fewer than two"):
            getattr(kernels, f"{name}_summed")(*arrays, np.ones((few, 7)), 0, *numbers(name))
    for array, before in zip(arrays, written(name, 5, "float64"), strict=True):
        np.testing.assert_array_equal(array, before)
