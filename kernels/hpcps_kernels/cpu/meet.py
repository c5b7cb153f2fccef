"""Sums over memory that several ranks see at once."""

from __future__ import annotations

from hpcps_kernels.cpu._atomic import load_acquire, store_release
from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.interface import Array

BLOCK = 2048  # elements whose running sum stays in the first-level cache


@kernel
def deposit(slot: Array, flags: Array, x: Array, rank: int, round: int) -> None:
    for i in range(slot.shape[0]):
        slot[i] = x[i]
    if rank < 0 or rank >= flags.shape[0]:
        raise IndexError("deposit: the rank is outside 0..P-1")
    store_release(flags, rank, round)


@kernel
def collect(out: Array, slots: Array, flags: Array, round: int, spins: int) -> bool:
    for _ in range(spins):
        if _all_raised(flags, round):
            _sum_rows(out, slots)
            return True
    return False


@part
def _all_raised(flags: Array, round: int) -> bool:
    for rank in range(flags.shape[0]):  # noqa: SIM110  (Numba knows no all())
        if load_acquire(flags, rank) < round:
            return False
    return True


@part
def _sum_rows(out: Array, rows: Array) -> None:
    for start in range(0, out.shape[0], BLOCK):
        into = out[start : start + BLOCK]
        _first_rows(into, rows, start)
        for r in range(2, rows.shape[0]):
            x = rows[r, start : start + BLOCK]
            for i in range(into.shape[0]):
                into[i] += x[i]


@part
def _first_rows(into: Array, rows: Array, start: int) -> None:
    first = rows[0, start : start + BLOCK]
    if rows.shape[0] == 1:
        into[:] = first
        return
    second = rows[1, start : start + BLOCK]
    for i in range(into.shape[0]):
        into[i] = first[i] + second[i]
