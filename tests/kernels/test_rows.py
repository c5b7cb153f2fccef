"""Rows moved and keys numbered, against NumPy: what generic cases do not reach."""

from __future__ import annotations

import numpy as np
import pytest
from hpcps_kernels import Kernels, load
from hypothesis import example, given, settings
from hypothesis import strategies as st

BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]
CPU = load("cpu")
DTYPES = ("float32", "float64", "int64")
LOW, HIGH = np.iinfo(np.int64).min, np.iinfo(np.int64).max


def check_unique(x: np.ndarray) -> None:
    """Call it and compare with NumPy's."""
    keys, inverse = np.full(len(x), 99), np.full(len(x), 99, np.int32)
    wanted, position = np.unique(x, return_inverse=True)
    assert CPU.unique(keys, inverse, x) == len(wanted)
    np.testing.assert_array_equal(keys[: len(wanted)], wanted)
    np.testing.assert_array_equal(inverse, position)
    assert not keys[len(wanted) :].any()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.integers(LOW, HIGH), st.integers(-9, 9), st.integers(0, 63).map(lambda b: LOW >> b))),
    st.integers(0, 63),
)
@example([LOW, HIGH], 0)
@example([LOW] * 50 + [HIGH] * 50, 0)
@example([7] * 100, 0)
def test_unique_is_numpy_s(values: list[int], shift: int) -> None:
    check_unique(np.array(values, np.int64) << shift)


RNG = np.random.default_rng(11)
KEYS = {
    "any": RNG.integers(LOW, HIGH, 50_000, endpoint=True),
    "half are twice": np.tile(RNG.integers(LOW, HIGH, 20_000), 2),
    "few far apart": RNG.choice(RNG.integers(LOW, HIGH, 5), 30_000),
    "skewed": RNG.zipf(1.3, 40_000) * 0x5851F42D4C957F,
    "only low bits differ, among all": RNG.integers(0, 3, 40_000) * (HIGH // 3) + RNG.integers(0, 2**15, 40_000),
    "only low bits differ, in a range": LOW + RNG.integers(0, 2**9, 30_000) * 2**54 + RNG.integers(0, 2**8, 30_000),
    "one bit in eight": RNG.integers(LOW, HIGH, 30_000) & 0x0101010101010101,
    "two bits in ten": RNG.integers(LOW, HIGH, 30_000) & sum(3 << bit for bit in range(0, 62, 10)),
    "around 0": RNG.integers(-(2**40), 2**40, 30_000),
    "falling": np.arange(70_000)[::-1] ** 3 - 10**13,
    "long runs of equal upper bits": (RNG.integers(0, 20, 60_000) ** 9 << 22) + RNG.integers(0, 2**22, 60_000),
    "clusters at both ends": np.where(RNG.random(30_000) < 0.5, LOW, HIGH - 2**21) + RNG.integers(0, 2**21, 30_000),
}


@pytest.mark.parametrize("name", KEYS)
def test_unique_of_many(name: str) -> None:
    for n in (1000, None):
        check_unique(np.ascontiguousarray(KEYS[name][:n]))


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_localize_numbers_keys_as_they_come(kernels: Kernels) -> None:
    x = np.array([5, 2, 5, 9, 0, 2], np.int32)
    keys, inverse, slots = np.full(6, 99), np.full(6, 99, np.int32), np.full(10, -1, np.int32)
    assert kernels.localize(keys, inverse, x, slots) == 4
    assert keys.tolist() == [5, 2, 9, 0, 0, 0]
    assert inverse.tolist() == [0, 1, 0, 2, 3, 1]
    assert (slots == -1).all()


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_localize_of_many(dtype) -> None:
    x = np.random.default_rng(2).zipf(1.2, 100_000).clip(0, 2**20 - 1).astype(dtype)
    keys, inverse, slots = np.empty(len(x), np.int64), np.empty(len(x), np.int32), np.full(2**20, -1, np.int32)
    count = CPU.localize(keys, inverse, x, slots)
    wanted, first = np.unique(x, return_index=True)
    np.testing.assert_array_equal(keys[:count], x[np.sort(first)])
    np.testing.assert_array_equal(keys[:count][inverse], x)
    assert count == len(wanted)
    assert (slots == -1).all()


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("bad", [-1, 10, 2**31 - 1, LOW])
def test_localize_leaves_slots_free_after_an_error(kernels: Kernels, bad: int) -> None:
    for dtype in (np.int32, np.int64) if bad > LOW else (np.int64,):
        for at in (0, 50, 99):
            x, slots = (np.arange(100) % 10).astype(dtype), np.full(10, -1, np.int32)
            x[at] = bad
            with pytest.raises(IndexError, match=r"0\.\.N-1"):
                kernels.localize(np.empty(100, np.int64), np.empty(100, np.int32), x, slots)
            assert (slots == -1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 15, 16, 31, 33, 127])
def test_rows_of_any_width(dtype: str, width: int) -> None:
    rng = np.random.default_rng(width)
    table, rows = ((rng.standard_normal((n, width)) * 1000).astype(dtype) for n in (37, 200))
    index = rng.integers(0, 37, 200)
    out = np.empty_like(rows)
    CPU.gather_rows(out, table, index)
    assert out.tobytes() == table[index].tobytes()
    summed, wanted = table.copy(), table.copy()
    CPU.scatter_add_rows(summed, rows, index)
    np.add.at(wanted, index, rows)
    assert summed.tobytes() == wanted.tobytes()
    CPU.scatter_rows(table, rows, index)
    last = {int(i): n for n, i in enumerate(index)}
    assert all(table[i].tobytes() == rows[n].tobytes() for i, n in last.items())


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("bad", [-1, 20, HIGH, LOW])
def test_a_bad_index_is_met_before_the_table_is_written(kernels: Kernels, dtype: str, width: int, bad: int) -> None:
    table, rows, index = np.ones((20, width), dtype), np.full((3000, width), 2, dtype), np.arange(3000) % 20
    for at in (0, 1500, 2999):
        broken = index.copy()
        broken[at] = bad
        with pytest.raises(IndexError, match=r"0\.\.N-1"):
            kernels.gather_rows(rows.copy(), table, broken)
        for kernel in (kernels.scatter_rows, kernels.scatter_add_rows):
            with pytest.raises(IndexError, match=r"0\.\.N-1"):
                kernel(table, rows, broken)
        if dtype != "int64":
            fixed = np.ones((20, width), np.int64)
            with pytest.raises(IndexError, match=r"0\.\.N-1"):
                kernels.scatter_add_rows_fixed(fixed, rows, broken, 1.0)
            assert (fixed == 1).all()
    assert (table == 1).all()


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_values_that_are_no_numbers_go_where_they_belong(kernels: Kernels) -> None:
    table, rows = np.zeros((3, 17), np.float32), np.ones((3, 17), np.float32)
    rows[0, 3], rows[1, 16] = np.nan, -np.inf
    kernels.scatter_add_rows(table, rows, np.array([2, 0, 2]))
    assert np.flatnonzero(~np.isfinite(table)).tolist() == [16, 2 * 17 + 3]
    assert np.nansum(table[2]) == 32
    kernels.scatter_rows(table, rows, np.array([1, 0, 0]))
    assert np.isnan(table[1, 3])
    assert (table[0] == 1).all()


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fixed_point_rounds_half_to_even_as_add_fixed_does(kernels: Kernels, dtype: str) -> None:
    values = [0.5, 1.5, 2.5, -0.5, -1.5, 2.0**61, -(2.0**61), 2.0**40 + 2.0**20, 0, -2.5, 7.49]
    rows = np.array([values, values[::-1]], dtype)
    table, wanted = np.zeros((4, len(values)), np.int64), np.zeros(len(values), np.int64)
    kernels.scatter_add_rows_fixed(table, rows, np.array([3, 1]), 1.0)
    kernels.add_fixed(wanted, rows[0], 1.0)
    assert table[3].tolist() == wanted.tolist() == table[1, ::-1].tolist()
    assert not table[[0, 2]].any()
    kernels.scatter_add_rows_fixed(table, rows * 0 + 1, np.array([0, 0]), 1000.6)
    assert (table[0] == 2002).all()
