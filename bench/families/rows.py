"""Rows of tables by key: distinct keys, an index from keys to rows, rows taken out and added to."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np

from families.case import Array, Call, Case, Verdict, differing, floats, kernel, numpy, torch

WIDTH = 16
BATCHES = 8  # sets of keys that take turns
KEY_RANGE = 2**22


def cases(quick: bool) -> list[Case]:
    keys, rows = (2**14, 10**5) if quick else (2**18, 10**6)
    return [
        _distinct("unique", keys),
        _distinct("localize", keys),
        _gather(keys, rows),
        _find_gather(keys, rows),
        _scatter_add(keys, rows),
    ]


def _power_law(seed: int, shape: tuple[int, ...], end: int) -> Array:
    """Whole numbers below ``end``; the k-th most frequent comes about 1 / k as often as the first."""
    ranks = np.exp(np.random.default_rng(seed).random(shape) * np.log(end)).astype(np.int64) - 1
    return ranks * 2654435761 % end


def _distinct(name: str, n: int) -> Case:
    def operands() -> list[tuple[Array, ...]]:
        dtype = np.int64 if name == "unique" else np.int32
        scratch = [] if name == "unique" else [np.full(KEY_RANGE, -1, np.int32)]
        batches = _power_law(0, (BATCHES, n), KEY_RANGE).astype(dtype)
        return [(np.empty(n, np.int64), np.empty(n, np.int32), x, *scratch) for x in batches]

    def with_numpy(keys, inverse, x, *scratch) -> Any:
        return np.unique(x, return_inverse=True)

    def with_torch(torch, keys, inverse, x, *scratch) -> Any:
        return torch.unique(x, return_inverse=True)

    def verify(ours: Any, peer: Any) -> Verdict:
        """Keys may be numbered in any order."""
        (keys, inverse), (their_keys, their_inverse) = ours[:2], peer
        count_differs = int(inverse.max() + 1 != len(their_keys))
        return Verdict(differing(keys[inverse], np.asarray(their_keys[their_inverse])) + count_differs)

    peers = {"NumPy": numpy(operands, with_numpy), "torch": torch(operands, with_torch)}
    size = f"{n} keys below 2^22"
    return Case(name, size, n, kernel(name, operands), peers, "M keys/s", "none", verify=verify)


def _picked(keys: int, rows: int) -> Array:
    return np.random.default_rng(1).integers(0, rows, (BATCHES, keys))


def _gather(keys: int, rows: int) -> Case:
    def operands() -> list[tuple[Array, ...]]:
        table = floats(0, rows, WIDTH)
        return [(np.empty((keys, WIDTH), np.float32), table, index) for index in _picked(keys, rows)]

    peers = {
        "NumPy": numpy(operands, lambda out, table, index: np.take(table, index, axis=0, out=out, mode="clip")),
        "torch": torch(operands, lambda torch, out, table, index: torch.index_select(table, 0, index, out=out)),
    }
    size = f"{keys} of {rows} x {WIDTH}"
    return Case("gather_rows", size, keys * (8 * WIDTH + 8), kernel("gather_rows", operands), peers)


def _scatter_add(keys: int, rows: int) -> Case:
    def operands() -> list[tuple[Array, ...]]:
        table, added = floats(0, rows, WIDTH), floats(1, keys, WIDTH)
        return [(table, added, index) for index in _picked(keys, rows)]

    def with_numpy(table, added, index) -> Array:
        np.add.at(table, index, added)
        return table

    peers = {
        "NumPy": numpy(operands, with_numpy),
        "torch": torch(operands, lambda torch, table, added, index: table.index_add_(0, index, added)),
    }
    size = f"{keys} of {rows} x {WIDTH}"
    return Case("scatter_add_rows", size, keys * (12 * WIDTH + 8), kernel("scatter_add_rows", operands), peers)


def _find_gather(keys: int, rows: int) -> Case:
    """Random int64 keys, all of them there; beside a binary search of the sorted keys."""
    known = np.unique(np.random.default_rng(0).integers(0, 2**63, rows + rows // 100))[:rows]

    def wanted() -> list[Array]:
        return list(known[_picked(keys, rows)])

    def ours(kernels: Any) -> Call:
        index, table = np.empty((2 ** (2 * rows - 1).bit_length(), 2), np.int64), floats(0, rows, WIDTH)
        kernels.index_clear(index)
        kernels.index_insert(np.empty(rows, np.int64), index, known, 0)
        slots, out = np.empty(keys, np.int64), np.empty((keys, WIDTH), np.float32)
        turn, find, gather = cycle(wanted()), kernels.index_find, kernels.gather_rows

        def call() -> Array:
            find(slots, index, next(turn))
            gather(out, table, slots)
            return out

        return call

    def with_numpy() -> Call:
        table, out, turn = floats(0, rows, WIDTH), np.empty((keys, WIDTH), np.float32), cycle(wanted())
        return lambda: np.take(table, np.searchsorted(known, next(turn)), axis=0, out=out, mode="clip")

    size = f"{keys} keys, {rows} x {WIDTH}"
    peers = {"NumPy searchsorted": with_numpy}
    return Case("index_find + gather_rows", size, keys, ours, peers, "M keys/s", "none")
