"""Entries that have the same key, found by sorting: what they add to a row is then added in an order that is always the
same, without atomics."""

from __future__ import annotations

from typing import Any, NamedTuple

from hpcps_kernels.gpu._launch import THREADS, Launch, device, strides
from hpcps_kernels.gpu._told import Told

_I = {"I": ("i32", "i64")}
_ELEMENTS = strides(THREADS)
OWNERS = Launch(
    "groups",
    "owners",
    "i64 *, i64 *, const i64 *, i64, const I *, i64, i64, const double *",
    _ELEMENTS,
    {"I": ("i32",)},
)
MARK_HEADS = Launch("groups", "mark_heads", "i64 *, const I *, const i64 *, i64", _ELEMENTS, _I)
FIND_STARTS = Launch("groups", "find_starts", "i64 *, const i64 *, const i64 *, i64", _ELEMENTS)


class Groups(NamedTuple):
    """Group g has the entries order[starts[g]] .. order[starts[g + 1] - 1], in their order."""

    order: Any  # (m,)
    starts: Any  # (m + 1,), of which the number of groups + 1 are set
    numbers: Any  # (m,): a position's group + 1; the last one is the number of groups
    heads: Any  # (m,): whether a position begins a group


def group(keys: Any) -> Groups:
    """Group entries by key, groups in ascending order of keys."""
    here, m = device(), keys.size
    order, heads = here.argsort(keys), here.empty(m, "int64")
    MARK_HEADS(m, heads, keys, order, m, I=keys.dtype)
    numbers, starts = here.running_sum(heads), here.empty(m + 1, "int64")
    FIND_STARTS(m, starts, heads, numbers, m)
    return Groups(order, starts, numbers, heads)


class Owned(NamedTuple):
    """Entries of samples, grouped by column."""

    samples: Any  # (nnz,): whose an entry is
    keys: Any  # (nnz,): its column, or the number of columns where it is nobody's
    groups: Groups


def group_entries(told: Told, indptr: Any, indices: Any, columns: int) -> Owned:
    """Group the entries of samples that were looked over; where something was wrong, all are nobody's."""
    here, nnz = device(), indices.size
    samples, keys = here.empty(nnz, "int64"), here.empty(nnz, "int64")
    OWNERS(nnz, samples, keys, indptr, indptr.size - 1, indices, nnz, columns, told.array, I=indices.dtype)
    return Owned(samples, keys, group(keys))
