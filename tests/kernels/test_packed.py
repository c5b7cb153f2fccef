"""Rows with their state beside them: the bits of rows and states apart."""

from __future__ import annotations

import numpy as np
import pytest
from hpcps_kernels import SPECS, Kernels, load
from kernel_cases.packed import PACKED
from kernel_cases.update import SCALARS

BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]
CPU = load("cpu")


def numbers(name: str) -> list[float]:
    given = {**SCALARS[name], "l1": 0.02, "l2": 0.1}
    return [given[argument.name] for argument in SPECS[f"{name}_packed"].scalars]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [1, 4, 16, 37])
@pytest.mark.parametrize("name", PACKED)
def test_packed_rows_have_the_bits_of_rows_apart(name: str, width: int, dtype: str) -> None:
    rng = np.random.default_rng(1)
    apart = [rng.random((300, width)).astype(dtype) for _ in range(1 + PACKED[name])]
    table = np.concatenate(apart, axis=1)
    for _ in range(3):
        index, gradient = rng.permutation(300)[:120], rng.standard_normal((120, width)).astype(dtype)
        getattr(CPU, f"{name}_rows")(*apart, gradient, index, *numbers(name))
        getattr(CPU, f"{name}_packed")(table, gradient, index, *numbers(name))
        np.testing.assert_array_equal(table, np.concatenate(apart, axis=1), strict=True)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("name", PACKED)
def test_what_is_refused_changes_nothing(kernels: Kernels, name: str) -> None:
    packed, gradient = getattr(kernels, f"{name}_packed"), np.ones((2, 3))
    wide = 3 * (1 + PACKED[name])
    table = np.ones((5, wide))
    for bad in (-1, 5):
        with pytest.raises(IndexError, match=r"outside 0\.\.N-1"):
            packed(table, gradient, np.array([0, bad]), *numbers(name))
    for width in (wide - 1, wide + 3, 3):
        other = np.ones((5, width))
        with pytest.raises(ValueError, match="times as wide as the gradient"):
            packed(other, gradient, np.array([0, 1]), *numbers(name))
        assert (other == 1).all()
    assert (table == 1).all()


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_leading_columns_of_rows_that_are_too_narrow_are_refused(kernels: Kernels) -> None:
    with pytest.raises(ValueError, match="narrower than out's"):
        kernels.gather_leading(np.ones((2, 4)), np.ones((5, 3)), np.array([0, 1]))
    with pytest.raises(IndexError):
        kernels.gather_leading(np.ones((2, 2)), np.ones((5, 3)), np.array([0, 5]))
