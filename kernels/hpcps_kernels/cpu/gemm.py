"""Matrix products. The vectors run along the columns of the product, or along its rows where that is less work."""

from __future__ import annotations

import numpy as np

from hpcps_kernels.cpu._gemm_tiles import (
    COLUMN_BYTES,
    FEW,
    FLIPPED,
    PAST,
    ROWS,
    SOME,
    STORED,
    copy_columns,
    copy_rows,
    flipped,
    flipped_of_few,
    flipped_of_one,
    flipped_of_some,
    past,
    past_of_few,
    past_of_one,
    past_of_some,
    tile,
    tile_of_few,
    tile_of_one,
    tile_of_some,
    transpose,
)
from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.cpu._memory import LINE_BYTES, address_of, aligned, array_at
from hpcps_kernels.cpu._past import settle
from hpcps_kernels.cpu._vectors import VECTOR_BYTES
from hpcps_kernels.interface import Array

PAGE_BYTES = 4096  # also what one way of a first-level cache holds
WAYS = 8
PANELS_BYTES, PANELS = 1 << 19, 4  # packed at a time: half of a usual second-level cache, and so many panels at least
FAR_BYTES = 1 << 18
ALL = 1 << 56
COPIED, STRIDED, TRANSPOSED, TURNED = 2, 4, 8, 16  # what these cost a number, in multiply-adds


@kernel
def gemm_nn(out: Array, a: Array, b: Array) -> None:
    m, n, k = a.shape[0], b.shape[1], a.shape[1]
    size = out.itemsize
    if _is_less_flipped(m, n, k, size, COPIED * n, TRANSPOSED * m + STRIDED * n):
        _product(out, True, address_of(b), size, n * size, address_of(a), size, k * size, n, m, k, 0, ALL)
    else:
        _product(out, False, address_of(a), k * size, size, address_of(b), n * size, size, m, n, k, 0, ALL)


@kernel
def gemm_nt(out: Array, a: Array, b: Array) -> None:
    m, n, k = a.shape[0], b.shape[0], a.shape[1]
    size = out.itemsize
    if _is_less_flipped(m, n, k, size, TRANSPOSED * n, TRANSPOSED * m):
        _product(out, True, address_of(b), k * size, size, address_of(a), size, k * size, n, m, k, 0, ALL)
    else:
        _product(out, False, address_of(a), k * size, size, address_of(b), size, k * size, m, n, k, 0, ALL)


@kernel
def gemm_tn(out: Array, a: Array, b: Array, kept: Array) -> None:
    m, n, k = a.shape[1], b.shape[1], a.shape[0]
    size = out.itemsize
    if _is_less_flipped(m, n, k, size, COPIED * n, COPIED * m):
        _product(out, True, address_of(b), size, n * size, address_of(a), m * size, size, n, m, k, kept[0], kept[1])
    else:
        _product(out, False, address_of(a), size, m * size, address_of(b), n * size, size, m, n, k, kept[0], kept[1])


@part
def _is_less_flipped(m: int, n: int, k: int, size: int, packing: int, packing_flipped: int) -> bool:
    """Whether vectors along m are less work than along n; in multiply-adds a step."""
    other = n * _padded(m, size) + packing_flipped + TURNED * m * n // max(k, 1)
    is_less: bool = other < m * _padded(n, size) + packing
    return is_less


@part
def _padded(n: int, size: int) -> int:
    columns = COLUMN_BYTES // size
    whole: int = (n + columns - 1) // columns * columns
    return whole


@part
def _product(
    out: Array,
    flips: bool,
    left: int,
    left_row: int,
    left_step: int,
    right: int,
    right_step: int,
    right_column: int,
    m: int,
    n: int,
    k: int,
    low_kept: int,
    high_kept: int,
) -> None:
    """out, or its transpose if ``flips``, = left (m, k) @ right (k, n), given by addresses and distances in bytes.

    Tiles that begin before number ``low_kept`` of out, or not before ``high_kept``, go past the caches if they can.
    """
    size = out.itemsize
    columns, rows, depth = COLUMN_BYTES // size, rows_of_tiles(m), _depth(k)
    out_row, out_column = (size, out.strides[0]) if flips else (out.strides[0], size)
    width = max(1, PANELS_BYTES // max(1, depth * COLUMN_BYTES)) * columns
    copies_left = n > columns and _is_slow(left_row, left_step, depth, size)
    panels = aligned(depth * min(width, _padded(n, size)), out)
    lefts = aligned(rows * (depth + LINE_BYTES) if copies_left else 0, out)
    begun = aligned((m + rows) * min(width, _padded(n, size)) if depth < k else 0, out)
    aside = np.empty((rows, columns), out.dtype)
    can_go_past = not flips and address_of(out) % VECTOR_BYTES == 0 and out.strides[0] % VECTOR_BYTES == 0
    since_kept, until_kept = (low_kept * size, high_kept * size) if can_go_past else (0, ALL)
    for start in range(0, n, width):
        stop = min(n, start + width)
        for low in range(0, max(k, 1), depth):
            count = min(depth, k - low)
            for j in range(start, stop, columns):
                place = right + j * right_column + low * right_step
                panel = address_of(panels) + (j - start) * depth * size
                pack(panels, panel, place, right_step, right_column, count, min(columns, n - j))
            sums = address_of(begun)
            for first in range(0, m, rows):
                i = min(first, m - rows)  # the last tile overlaps the one before: the same numbers are written again
                place, row, step = left + i * left_row + low * left_step, left_row, left_step
                if copies_left:
                    row, step = _copy_left(lefts, place, left_row, left_step, rows, count)
                    place = address_of(lefts)
                for j in range(start, stop, columns):
                    panel = address_of(panels) + (j - start) * depth * size
                    since = sums if low > 0 else 0
                    if low + count < k:
                        tile_of(begun, STORED, rows, sums, COLUMN_BYTES, place, row, step, panel, count, since)
                    elif n - j < columns:
                        into = address_of(aside)
                        tile_of(aside, STORED, rows, into, COLUMN_BYTES, place, row, step, panel, count, since)
                        _put_aside(out, flips, aside, i, j, n - j)
                    else:
                        at = i * out_row + j * out_column
                        how = FLIPPED if flips else STORED if since_kept <= at < until_kept else PAST
                        into = address_of(out) + at
                        tile_of(out, how, rows, into, out.strides[0], place, row, step, panel, count, since)
                    sums += rows * COLUMN_BYTES
    if can_go_past:
        settle()


@part
def _depth(k: int) -> int:
    """How many steps are taken before the next columns and rows: all, unless panels are too long for the cache."""
    most = PANELS_BYTES // (PANELS * COLUMN_BYTES)
    parts = 1 if k <= most else (2 * k + most - 1) // most
    depth = (k + parts - 1) // parts
    whole: int = max(1, depth) if parts == 1 else (depth + LINE_BYTES - 1) // LINE_BYTES * LINE_BYTES
    return whole


@part
def _is_slow(row: int, step: int, depth: int, size: int) -> bool:
    """Whether rows of a tile, or steps, fall into the same few sets of the first-level cache, or on ever new pages."""
    if step == size:
        return row % PAGE_BYTES == 0
    return share_sets(step, depth) or step * depth > FAR_BYTES


@part
def share_sets(step: int, count: int) -> bool:
    """Whether so many lines, ``step`` bytes apart, are more than the sets of the first-level cache hold that they fall
    into: each set gets every PAGE_BYTES / shared-th."""
    shared = min(step & -step, PAGE_BYTES)
    return shared > LINE_BYTES and count * shared > WAYS * PAGE_BYTES


@part
def _copy_left(lefts: Array, left: int, row: int, step: int, rows: int, count: int) -> tuple[int, int]:
    """Copy the rows of a tile to where they lie closer; returns the distances of rows and of steps there."""
    size = lefts.itemsize
    if step == size:
        length = count + LINE_BYTES // size
        for r in range(rows):
            to, of = lefts[r * length : r * length + count], array_at(left + r * row, count, lefts)
            for p in range(count):
                to[p] = of[p]
        return length * size, size
    if rows == ROWS:
        for p in range(count):
            copy_rows(lefts, address_of(lefts) + p * ROWS * size, left + p * step)
        return size, ROWS * size
    for p in range(count):
        to, of = lefts[p * rows : (p + 1) * rows], array_at(left + p * step, rows, lefts)
        for r in range(rows):
            to[r] = of[r]
    return size, rows * size


@part
def rows_of_tiles(m: int) -> int:
    """How many rows the tiles have that make up m rows: where they overlap least."""
    if m < FEW:
        return 1
    best, least = FEW, (m + FEW - 1) // FEW * (FEW + 1)
    if m >= SOME and (m + SOME - 1) // SOME * (SOME + 1) <= least:
        best, least = SOME, (m + SOME - 1) // SOME * (SOME + 1)
    if m >= ROWS and (m + ROWS - 1) // ROWS * (ROWS + 1) <= least:
        best = ROWS
    return best


@part
def tile_of(
    like: Array,
    how: int,
    rows: int,
    out: int,
    out_row: int,
    left: int,
    left_row: int,
    left_step: int,
    panel: int,
    count: int,
    begun: int,
) -> None:
    """The tile for so many rows: see `_gemm_tiles`."""
    if rows == ROWS and how == FLIPPED:
        flipped(like, out, out_row, left, left_row, left_step, panel, count, begun)
    elif rows == ROWS and how == PAST:
        past(like, out, out_row, left, left_row, left_step, panel, count, begun)
    elif rows == ROWS:
        tile(like, out, out_row, left, left_row, left_step, panel, count, begun)
    elif rows == SOME and how == FLIPPED:
        flipped_of_some(like, out, out_row, left, left_row, left_step, panel, count, begun)
    elif rows == SOME and how == PAST:
        past_of_some(like, out, out_row, left, left_row, left_step, panel, count, begun)
    elif rows == SOME:
        tile_of_some(like, out, out_row, left, left_row, left_step, panel, count, begun)
    elif rows == FEW and how == FLIPPED:
        flipped_of_few(like, out, out_row, left, left_row, left_step, panel, count, begun)
    elif rows == FEW and how == PAST:
        past_of_few(like, out, out_row, left, left_row, left_step, panel, count, begun)
    elif rows == FEW:
        tile_of_few(like, out, out_row, left, left_row, left_step, panel, count, begun)
    elif how == FLIPPED:
        flipped_of_one(like, out, out_row, left, left_row, left_step, panel, count, begun)
    elif how == PAST:
        past_of_one(like, out, out_row, left, left_row, left_step, panel, count, begun)
    else:
        tile_of_one(like, out, out_row, left, left_row, left_step, panel, count, begun)


@part
def _put_aside(out: Array, flips: bool, aside: Array, i: int, j: int, count: int) -> None:
    """The first columns of a tile at (i, j), to where they belong."""
    for r in range(aside.shape[0]):
        for c in range(count):
            if flips:
                out[j + c, i + r] = aside[r, c]
            else:
                out[i + r, j + c] = aside[r, c]


@part
def pack(like: Array, panel: int, right: int, step: int, column: int, k: int, count: int) -> None:
    """One panel: ``count`` columns of right, filled up with 0."""
    size = like.itemsize
    columns, lanes = COLUMN_BYTES // size, VECTOR_BYTES // size
    into = array_at(panel, k * columns, like)
    if column == size and count == columns:
        for p in range(k):
            copy_columns(like, panel + p * COLUMN_BYTES, right + p * step)
        return
    if column == size:
        for p in range(k):
            of = array_at(right + p * step, count, like)
            for c in range(count):
                into[p * columns + c] = of[c]
            into[p * columns + count : (p + 1) * columns] = 0
        return
    whole = k // lanes * lanes if count == columns else 0
    for p in range(0, whole, lanes):
        for c in range(0, columns, lanes):
            transpose(like, panel + (p * columns + c) * size, COLUMN_BYTES, right + p * size + c * column, column)
    for c in range(count):
        of = array_at(right + c * column, k, like)
        for p in range(whole, k):
            into[p * columns + c] = of[p]
    for p in range(whole, k):
        into[p * columns + count : (p + 1) * columns] = 0
