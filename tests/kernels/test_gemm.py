"""Matrix products: each number is the same chain of multiply-adds, whatever else is computed with it."""

from __future__ import annotations

import numpy as np
import pytest
from hpcps_kernels import load
from kernel_cases import FLOATS

CPU = load("cpu")
FORMS = {"gemm_nn": (False, False), "gemm_nt": (False, True), "gemm_tn": (True, False)}


def laid_out(matrix: np.ndarray, is_transposed: bool) -> np.ndarray:
    return np.ascontiguousarray(matrix.T if is_transposed else matrix)


def product(form: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    out = np.full((len(a), b.shape[1]), np.nan, a.dtype)
    multiply(form, out, a, b)
    return out


def multiply(form: str, out: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    kept = [np.array([0, out.size])] if form == "gemm_tn" else []
    getattr(CPU, form)(out, laid_out(a, FORMS[form][0]), laid_out(b, FORMS[form][1]), *kept)


@pytest.mark.parametrize("steps", [130, 2048, 3001])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", FORMS)
def test_bits_depend_on_one_row_and_one_column(form, dtype, steps) -> None:
    """However many others there are, in either orientation, in whole tiles or in parts."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((75, steps)).astype(dtype), rng.standard_normal((steps, 203)).astype(dtype)
    whole = product(form, a, b)
    for rows in (slice(0, 1), slice(3, 10), slice(10, 74), slice(40, 72)):
        for columns in (slice(0, 1), slice(5, 25), slice(64, 128), slice(20, 203)):
            np.testing.assert_array_equal(product(form, a[rows], b[:, columns]), whole[rows, columns])


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_three_forms_give_the_same_bits(dtype) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((45, 200)).astype(dtype), rng.standard_normal((200, 70)).astype(dtype)
    first, *others = (product(form, a, b) for form in FORMS)
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_finite_stays_in_its_row_and_column(form) -> None:
    a, b = np.ones((33, 20), np.float32), np.ones((20, 40), np.float32)
    a[7, 3], b[4, 39] = np.inf, np.nan
    out = product(form, a, b)
    assert np.isnan(out[:, 39]).all()
    assert np.isinf(out[7, :39]).all()
    out[7], out[:, 39] = 20, 20
    np.testing.assert_array_equal(out, 20)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_written_beside_the_product(form) -> None:
    for m, n in [(1, 1), (5, 33), (14, 31), (29, 64), (200, 9)]:
        room = np.full(m * n + 128, 7, np.float32)
        a, b = np.ones((m, 6), np.float32), np.ones((6, n), np.float32)
        multiply(form, room[64 : 64 + m * n].reshape(m, n), a, b)
        np.testing.assert_array_equal(room, [7] * 64 + [6] * (m * n) + [7] * 64)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("units", [1, 5, 8, 70, 512])  # tiles of every height
def test_what_is_not_kept_has_the_same_bits_wherever_rows_begin(units, dtype) -> None:
    rng = np.random.default_rng(2)
    delta, x = (rng.standard_normal((40, width)).astype(dtype) for width in (units, 96))
    expected, room = product("gemm_tn", delta.T, x), np.empty(units * 96 + 128, dtype)
    line = -room.ctypes.data % 64 // room.itemsize
    for first in (line, line + 64, line + 1):
        for kept in ((0, 0), (0, units * 48), (units * 48, units * 96), (100, 200), (units * 96, units * 96)):
            room[:] = 7
            out = room[first : first + units * 96].reshape(units, 96)
            CPU.gemm_tn(out, delta, x, np.array(kept))
            np.testing.assert_array_equal(out, expected)
            assert np.count_nonzero(room == 7) == 128
