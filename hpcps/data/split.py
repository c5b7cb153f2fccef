"""Which rows are held out, and which rows the blocks of a rank are."""

from __future__ import annotations

import numpy as np

from hpcps.data.pieces import Rows
from hpcps.errors import ConfigError, DataError

HELD_OUT_KEY = 0x68656C64  # keeps this draw apart from others with the same seed


def split_rows(count: int, fraction: float, seed: int, name: str) -> tuple[Rows, Rows]:
    """Training and held-out rows, both ascending; a random ``fraction``, the same on every rank, is held out.

    Raises ConfigError for a fraction outside 0..1, DataError where one side would be empty.
    """
    if fraction == 0:
        return range(count), range(0)
    if not 0 < fraction < 1:
        raise ConfigError(f"data.test_fraction = {fraction} must lie between 0 and 1")
    held = round(fraction * count)
    if not 0 < held < count:
        side = "held-out" if held == 0 else "training"
        raise DataError(f"{name}: data.test_fraction = {fraction} of its {count} samples leaves no {side} sample")
    key = np.array([seed & (2**64 - 1), HELD_OUT_KEY], np.uint64)
    draw = np.random.Generator(np.random.Philox(key=key))
    is_test = np.zeros(count, bool)
    is_test[draw.permutation(count)[:held]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)
