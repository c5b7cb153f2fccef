"""Counts of keys in fixed memory: never too low, right where there is room."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hpcps_kernels import Kernels, load

BACK_ENDS = [pytest.param(load(name), id=name) for name in ("reference", "cpu")]


def by_counter(keys: np.ndarray) -> list[int]:
    seen: Counter[int] = Counter()
    return [seen.update([key]) or seen[key] for key in keys.tolist()]


def counted(kernels: Kernels, counters: np.ndarray, keys: np.ndarray) -> np.ndarray:
    counts = np.empty(len(keys), np.int64)
    kernels.sketch_count(counts, counters, keys)
    return counts


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_counts_are_right_where_there_is_room(kernels: Kernels) -> None:
    keys = np.random.default_rng(0).zipf(1.5, 3000) * 0x5851F42D4C957F
    counters = np.zeros((4, 1 << 16), np.uint16)
    wanted = by_counter(keys)
    assert np.concatenate([counted(kernels, counters, part) for part in np.array_split(keys, 3)]).tolist() == wanted


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_counts_are_never_too_low_where_there_is_none(kernels: Kernels) -> None:
    keys = np.random.default_rng(1).integers(-300, 300, 2000)
    found = counted(kernels, np.zeros((3, 64), np.uint16), keys)
    assert (found >= by_counter(keys)).all()
    assert (found > by_counter(keys)).any()


@pytest.mark.parametrize("kernels", BACK_ENDS)
def test_counts_stop_at_the_largest(kernels: Kernels) -> None:
    counters = np.full((2, 8), 2**16 - 3, np.uint16)
    assert counted(kernels, counters, np.zeros(4, np.int64)).tolist() == [2**16 - 2, *[2**16 - 1] * 3]
    assert set(counters.reshape(-1).tolist()) == {2**16 - 3, 2**16 - 1}


@pytest.mark.parametrize("kernels", BACK_ENDS)
@pytest.mark.parametrize("shape", [(0, 8), (2, 0), (2, 12)], ids=str)
def test_other_shapes_are_refused(kernels: Kernels, shape) -> None:
    counters = np.zeros(shape, np.uint16)
    with pytest.raises(ValueError, match="power of two"):
        counted(kernels, counters, np.arange(3))
    assert not counters.any()
