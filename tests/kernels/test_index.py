"""The index from keys to slots against a dict, and that no error leaves anything in it."""

from __future__ import annotations

import numpy as np
import pytest
from hpcps_kernels import Kernels, load
from hpcps_kernels.row_index import RowIndex
from hypothesis import given, settings
from hypothesis import strategies as st

BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]
CPU = load("cpu")
LOW, HIGH = np.iinfo(np.int64).min, np.iinfo(np.int64).max
EMPTY = 0, -1


def new_table(kernels: Kernels, cells: int) -> np.ndarray:
    table = np.empty((cells, 2), np.int64)
    kernels.index_clear(table)
    return table


def find(kernels: Kernels, table: np.ndarray, keys) -> list[int]:
    slots = np.empty(len(keys), np.int64)
    kernels.index_find(slots, table, np.asarray(keys, np.int64))
    return slots.tolist()


def slots_by_dict(keys: np.ndarray, held: dict[int, int]) -> list[int]:
    return [held.setdefault(key, len(held)) for key in keys.tolist()]


def fmix64(h: int) -> int:
    """MurmurHash3's finaliser in Python's integers."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        h = (h ^ h >> 33) * factor % 2**64
    return h ^ h >> 33


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_a_key_lies_in_the_group_that_fmix64_says(kernels: Kernels) -> None:
    assert fmix64(1) == 0xB456BCFC34C2CB2C  # as SMHasher's code gives it
    for key in (0, 1, -1, 12345, LOW, HIGH):
        table = new_table(kernels, 256)
        assert kernels.index_insert(np.empty(1, np.int64), table, np.array([key]), 9) == 10
        assert table[fmix64(key % 2**64) % 256 // 4 * 4].tolist() == [key, 9]
        assert (table[:, 1] >= 0).sum() == 1


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize(
    "keys",
    [
        np.array([], np.int64),
        np.array([0, 0, LOW, HIGH, -1, LOW, 0]),
        np.arange(-150, 150),
        np.arange(300) << 50,
        np.tile(np.arange(100) * 4096, 5),
    ],
    ids=["nothing", "extremes", "range", "upper bits", "multiples"],
)
def test_slots_are_a_dict_s(kernels: Kernels, keys: np.ndarray) -> None:
    table, held = new_table(kernels, 512), {}
    assert find(kernels, table, keys) == [-1] * len(keys)
    slots = np.empty(len(keys), np.int64)
    half, count = len(keys) // 2, 0
    for part in (slice(half), slice(half, None), slice(None)):
        count = kernels.index_insert(slots[part], table, keys[part], count)
        assert slots[part].tolist() == slots_by_dict(keys[part], held)
        assert count == len(held)
    assert find(kernels, table, keys) == slots.tolist()
    assert find(kernels, table, keys ^ 1 << 40) == [held.get(key, -1) for key in (keys ^ 1 << 40).tolist()]


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("cells", [1, 2, 8, 64])
def test_a_table_that_would_be_too_full_stays_as_it_was(kernels: Kernels, cells: int) -> None:
    most = cells - cells // 8
    keys = np.repeat(np.arange(most + 1) * 7 - 3, 2)
    for held in {0, most // 2, most}:
        table = new_table(kernels, cells)
        slots = np.empty(len(keys), np.int64)
        count = kernels.index_insert(slots[:held], table, keys[::2][:held].copy(), 0)
        before = table.copy()
        with pytest.raises(ValueError, match="7/8"):
            kernels.index_insert(slots, table, np.concatenate([keys[2:-1], keys[:2], keys[-1:]]), count)
        np.testing.assert_array_equal(table, before)
        assert kernels.index_insert(slots[:-2], table, keys[:-2], count) == most


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_a_full_table_ends_a_search(kernels: Kernels) -> None:
    table = np.stack([np.arange(8), np.arange(8)], axis=1)
    assert find(kernels, table, [100]) == [-1]
    before = table.copy()
    with pytest.raises(ValueError, match="7/8"):
        kernels.index_insert(np.empty(1, np.int64), table, np.array([100]), 0)
    np.testing.assert_array_equal(table, before)


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("cells", [0, 3, 12, 1000])
def test_a_length_that_is_no_power_of_two_is_refused(kernels: Kernels, cells: int) -> None:
    table, good, keys = np.full((cells, 2), 5), new_table(kernels, 16), np.arange(2)
    for call in (
        lambda: kernels.index_clear(table),
        lambda: kernels.index_find(keys.copy(), table, keys),
        lambda: kernels.index_insert(keys.copy(), table, keys, 0),
        lambda: kernels.index_grow(table, good),
        lambda: kernels.index_grow(good, table),
    ):
        with pytest.raises(ValueError, match="power of two"):
            call()
    assert (table == 5).all()
    assert (good == EMPTY).all()


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_grow_keeps_slots_and_refuses_what_is_too_small(kernels: Kernels) -> None:
    table, keys = new_table(kernels, 64), np.arange(50) << 33
    slots = np.empty(50, np.int64)
    kernels.index_insert(slots, table, keys, 0)
    for cells in (64, 128, 1024):
        new = np.full((cells, 2), 3)
        kernels.index_grow(new, table)
        assert find(kernels, new, keys) == list(range(50))
        assert (new[new[:, 1] < 0] == EMPTY).all()
    small = np.full((32, 2), 3)
    with pytest.raises(ValueError, match="7/8"):
        kernels.index_grow(small, table)
    assert (small == 3).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.one_of(st.integers(-20, 20), st.integers(LOW, HIGH)), max_size=40), max_size=8))
def test_a_row_index_is_a_dict(batches: list[list[int]]) -> None:
    index, held = RowIndex(CPU, capacity=1), {}
    for batch in batches:
        keys = np.array(batch, np.int64)
        assert index.find(keys).tolist() == [held.get(key, -1) for key in batch]
        assert index.insert(keys).tolist() == slots_by_dict(keys, held)
        assert len(index) == len(held)
    assert index.keys.tolist() == list(held)


def test_a_row_index_is_the_same_on_every_back_end() -> None:
    keys = np.random.default_rng(3).integers(-300, 300, 2000)
    indices = [RowIndex(load(name), capacity=3) for name in ("reference", "cpu")]
    for part in np.array_split(keys, 7):
        a, b = (index.insert(part) for index in indices)
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(indices[0].keys, indices[1].keys)


@pytest.mark.parametrize("stride", [1, 1 << 20, 1 << 44], ids=str)
def test_a_row_index_grows_to_a_million_keys(stride: int) -> None:
    keys = (np.random.default_rng(5).permutation(1_000_000) - 500_000) * stride
    keys = np.unique(keys)[::-1].copy()  # a large stride wraps around
    index = RowIndex(CPU)
    for start in range(0, len(keys), 70_000):
        part = keys[start : start + 70_000]
        assert (index.insert(part) == np.arange(start, start + len(part))).all()
    assert len(index) == len(keys)
    assert (index.find(keys) == np.arange(len(keys))).all()
    assert (index.insert(keys) == np.arange(len(keys))).all()
    np.testing.assert_array_equal(index.keys, keys)


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_keys_of_one_group_go_on_to_the_next(kernels: Kernels) -> None:
    keys = np.array([key for key in range(-2000, 2000) if fmix64(key % 2**64) % 64 // 4 == 15][:10])
    table, slots = new_table(kernels, 64), np.empty(10, np.int64)
    assert kernels.index_insert(slots, table, keys, 0) == 10
    assert table[60:, 0].tolist() == keys[:4].tolist()
    assert table[:6, 0].tolist() == keys[4:].tolist()
    assert find(kernels, table, keys) == list(range(10))
    assert find(kernels, table, keys + 10_000) == [-1] * 10


def test_back_ends_make_the_same_table() -> None:
    rng = np.random.default_rng(1)
    tables, count = [new_table(load(name), 1024) for name in ("reference", "cpu")], 0
    for _ in range(6):
        keys = rng.integers(-400, 400, 200) << 20
        counts = [
            load(name).index_insert(np.empty(200, np.int64), table, keys, count)
            for name, table in zip(("reference", "cpu"), tables, strict=True)
        ]
        count = counts[0]
        assert counts[1] == count
        np.testing.assert_array_equal(*tables)
