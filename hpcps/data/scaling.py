"""Shift and scale of each feature, with the same bits whoever owns which block.

Sums are taken per block in float64 and added in block order. Sparse samples are never shifted, since that
would fill in all their zeros: ``standard`` divides them by the standard deviation only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from hpcps.data.blocks import CHUNK_ROWS, Block, Csr, Floats, Samples, find_bad
from hpcps.errors import ConfigError, DataError
from hpcps.together import Together, agree

GATHERED_COLUMNS = 1 << 16
EPSILON = float(np.finfo(np.float64).eps)


def shift_and_scale(
    kind: str, blocks: list[Block], features: int, count: int, sparse: bool, together: Together
) -> tuple[Floats, Floats]:
    """Shift and scale (D,) over the training set of all ranks, as ``data.scale`` names them.

    none: 0 and 1 · bytes: 1/255 · maxabs: 1 / largest magnitude · standard: mean and 1 / standard deviation
    (of the whole set, divided by n; 1 for a constant feature; no shift where ``sparse``). ``count`` is the
    size of the training set. A collective where the data are looked at; raises DataError naming a value
    that is not finite, on all ranks.
    """
    if kind not in ("none", "bytes", "maxabs", "standard"):
        raise ConfigError(f"data.scale = '{kind}' is not known; use none, bytes, maxabs or standard")
    zeros, ones = np.zeros(features), np.ones(features)
    if kind == "none":
        return zeros, ones
    if kind == "bytes":
        return zeros, ones / 255
    if kind == "maxabs":
        largest = _over_blocks(_largest, blocks, features, together, np.maximum)
        return zeros, _reciprocal(largest)
    mean = _over_blocks(_sums, blocks, features, together, np.add) / count
    squares = _over_blocks(lambda s: _squares(s, mean), blocks, features, together, np.add)
    deviation = np.sqrt(squares / count)
    deviation[deviation <= count * EPSILON * np.abs(mean)] = 0  # constant but for rounding
    return (zeros if sparse else mean), _reciprocal(deviation)


def _reciprocal(x: Floats) -> Floats:
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1 / x
    return np.where(np.isfinite(inverse), inverse, 1.0)


def _over_blocks(
    measure: Callable[[Samples], Floats],
    blocks: list[Block],
    features: int,
    together: Together,
    join: np.ufunc,
) -> Floats:
    """``measure`` of every block (D,), joined in block order over all ranks."""
    own = agree(together, lambda: [_finite(measure, block) for block in blocks])
    table = np.stack(own) if own else np.zeros((0, features))
    joined = [
        _in_order(together.gather(table[:, low : low + GATHERED_COLUMNS].reshape(-1)), table, low, join)
        for low in range(0, features, GATHERED_COLUMNS)
    ]
    return np.concatenate(joined)


def _in_order(gathered: Floats, table: Floats, low: int, join: np.ufunc) -> Floats:
    width = min(GATHERED_COLUMNS, table.shape[1] - low)
    total = np.zeros(width)
    for row in gathered.reshape(-1, width):
        join(total, row, out=total)
    return total


def _finite(measure: Callable[[Samples], Floats], block: Block) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        result = measure(block.samples)
    if not np.isfinite(result).all():
        column = int(np.argmin(np.isfinite(result)))
        raise DataError(find_bad(block) or f"{block.where(0)}: the values of feature {column} are too large to scale")
    return result


def _chunks(samples: Samples) -> Iterable[Floats]:
    """Rows of dense samples in float64, always cut and copied alike, so that sums have the same bits."""
    assert not isinstance(samples, Csr)
    for low in range(0, len(samples), CHUNK_ROWS):
        yield samples[low : low + CHUNK_ROWS].astype(np.float64)


def _largest(samples: Samples) -> Floats:
    if isinstance(samples, Csr):
        largest = np.zeros(samples.features)
        np.maximum.at(largest, samples.indices, np.abs(samples.values.astype(np.float64)))
        return largest
    largest = np.zeros(samples.shape[1])
    for chunk in _chunks(samples):
        np.maximum(largest, np.abs(chunk).max(axis=0), out=largest)
    return largest


def _sums(samples: Samples) -> Floats:
    if isinstance(samples, Csr):
        return np.bincount(samples.indices, samples.values, samples.features).astype(np.float64)
    total = np.zeros(samples.shape[1])
    for chunk in _chunks(samples):
        total += chunk.sum(axis=0)
    return total


def _squares(samples: Samples, mean: Floats) -> Floats:
    """Sums of squared deviations from the mean; the zeros of sparse samples count."""
    if isinstance(samples, Csr):
        deviations = np.square(samples.values - mean[samples.indices])
        stored = np.bincount(samples.indices, minlength=samples.features)
        present = np.bincount(samples.indices, deviations, samples.features)
        return np.asarray(present + (len(samples) - stored) * np.square(mean), np.float64)
    total = np.zeros(samples.shape[1])
    for chunk in _chunks(samples):
        total += np.square(chunk - mean).sum(axis=0)
    return total
