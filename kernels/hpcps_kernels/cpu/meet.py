"""Ranks of one node that add up arrays which all of them see: each its share, at the speed of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from hpcps_kernels.cpu._half import bfloat16_of, float_of_bits, from_half, to_half
from hpcps_kernels.cpu._jit import kernel, part
from hpcps_kernels.cpu._memory import array_at, load_acquire, store_release
from hpcps_kernels.desk import (
    FINISHED,
    HEAD,
    IN_SCRATCH,
    NOT_SEEN,
    OFFSET_BITS,
    PLACES,
    RANK,
    RANKS,
    READY,
    REGIONS,
    ROUND_BITS,
    SCRATCH_BYTES,
    SETS,
    SETTLED,
    SIGNATURES,
    SMALL_BYTES,
    UNSEEN,
    WAITING_FOR_ARRAYS,
    WAITING_FOR_SETS,
    WAITING_FOR_WORK,
    WORKED,
)
from hpcps_kernels.interface import Array

SUM, SCATTER, GATHER = 0, 1, 2  # the positions of their names in the spec
OWN, BFLOAT16, FLOAT16 = 0, 1, 2
WORD = 8
BLOCK = 2048  # elements of a sum that stay in the first-level cache


@kernel
def meet(
    x: Array,
    work: Array,
    bounds: Array,
    program: Array,
    desk: Array,
    operation: int,
    format: int,
    count: int,
    number: int,
    state: int,
    spins: int,
) -> int:
    reached: int = _go_on(x, work, bounds, program, desk, operation, format, count, number, state, spins)
    return reached


@kernel
def meet_sum(x: Array, work: Array, desk: Array, format: int, number: int, spins: int) -> int:
    bounds = array_at(0, 0, desk)
    program = bounds.reshape((0, 3))
    begun = WAITING_FOR_SETS
    reached: int = _go_on(x, work, bounds, program, desk, SUM, format, x.shape[0], number, begun, spins)
    return reached


@part
def _go_on(
    x: Array,
    work: Array,
    bounds: Array,
    program: Array,
    desk: Array,
    operation: int,
    format: int,
    count: int,
    number: int,
    state: int,
    spins: int,
) -> int:
    _check(x, bounds, program, desk, count)
    sums = _sums_in(work, x)
    signature = ((count * 4 + operation) * 4 + format) * 16 + x.itemsize
    is_small = operation == SUM and program.shape[0] == 0 and x.itemsize * count <= desk[SMALL_BYTES]
    if state == WAITING_FOR_SETS:
        if desk[SETTLED] < number - SETS:  # who has not finished that round may be reading the set of this one
            if not _all_reached(desk, WORKED, number - SETS, max(1, spins)):
                return WAITING_FOR_SETS
            desk[SETTLED] = number - SETS
        _begin(x, bounds, desk, operation, count, number, signature, is_small)
        state = WAITING_FOR_ARRAYS
        if spins == 0:
            return state
    if state == WAITING_FOR_ARRAYS:
        if not _all_reached(desk, READY, number << ROUND_BITS, spins):
            return WAITING_FOR_ARRAYS
        other: int = _who_differs(desk, number, signature)
        if other >= 0:
            return -1 - other
        if is_small:
            _sum_scratch(x, sums, desk, format, count, number)
            _say(desk, WORKED, number)
            return FINISHED
        if not _all_are_seen(desk, number):
            _say(desk, WORKED, number)
            return UNSEEN
        if operation == GATHER:
            _gather(x, bounds, desk, count, number)
        else:
            _sum_chunk(x, sums, bounds, program, desk, operation, format, count, number)
        _say(desk, WORKED, number)
    if not _all_reached(desk, WORKED, number, spins):
        return WAITING_FOR_WORK
    if operation == SUM and _region(desk, x) < 0:
        _copy_others(x, _scratch(x, desk, desk[RANK], number), bounds, desk, count, count)
    return FINISHED


def _sums_in(work: Array, x: Array) -> Array:
    """``work`` as numbers of the dtype in which x is added."""
    raise NotImplementedError("compiled code alone")


@overload(_sums_in, inline="always")
def _overload_sums_in(work: Any, x: Any) -> Any:
    dtype = np.float32 if x.dtype == types.uint16 else np.dtype(str(x.dtype))

    def sums(work: Any, x: Any) -> Any:
        return work.view(dtype)

    return sums


@part
def _check(x: Array, bounds: Array, program: Array, desk: Array, count: int) -> None:
    ranks = desk[RANKS]
    if count < 0 or count > x.shape[0] or (bounds.shape[0] != 0 and bounds.shape[0] != ranks + 1):
        raise ValueError("meet: x must hold count elements, and bounds one more than there are ranks")
    for i in range(bounds.shape[0]):
        if bounds[i] < 0 or bounds[i] > count or (i > 0 and bounds[i] < bounds[i - 1]):
            raise ValueError("meet: bounds must rise from 0 to count")
    for k in range(program.shape[0]):
        if program[k, 0] < 0 or program[k, 0] >= ranks:
            raise ValueError("meet: the program names a rank that is not there")


@part
def _all_reached(desk: Array, word: int, value: int, spins: int) -> bool:
    for rank in range(desk[RANKS]):
        looks = 0
        while load_acquire(desk[HEAD + rank] + WORD * word) < value:
            looks += 1
            if looks >= spins:
                return False
    return True


@part
def _say(desk: Array, word: int, value: int) -> None:
    store_release(desk[HEAD + desk[RANK]] + WORD * word, value)


@part
def _begin(
    x: Array, bounds: Array, desk: Array, operation: int, count: int, number: int, signature: int, is_small: bool
) -> None:
    turn = number % SETS
    region = -1 if is_small else _region(desk, x)
    place = NOT_SEEN
    if region >= 0:
        place = region << OFFSET_BITS | (x.ctypes.data - _base(desk, region, desk[RANK]))
    elif x.shape[0] * x.itemsize <= desk[SCRATCH_BYTES]:
        place, scratch = IN_SCRATCH, _scratch(x, desk, desk[RANK], number)
        lo, hi = _chunk(desk, bounds, count, desk[RANK])
        if operation == GATHER:
            _copy(scratch, lo, x, lo, hi - lo)
        elif is_small:
            _copy(scratch, 0, x, 0, count)
        else:
            _copy_others(scratch, x, bounds, desk, count, x.shape[0])
    _say(desk, PLACES + turn, place)
    _say(desk, SIGNATURES + turn, signature)
    _say(desk, READY, number << ROUND_BITS | signature & ((1 << ROUND_BITS) - 1))


@part
def _region(desk: Array, x: Array) -> int:
    """The number of the region that holds x; -1 where there is none."""
    address, size = x.ctypes.data, x.shape[0] * x.itemsize
    for region in range(desk[REGIONS]):
        start = _base(desk, region, desk[RANK])
        if address >= start and address + size <= start + _base(desk, region, -1):
            return region
    return -1


@part
def _base(desk: Array, region: int, rank: int) -> int:
    """Where a rank's piece of a region lies; of rank -1: how many bytes a piece has."""
    address: int = desk[HEAD + 2 * desk[RANKS] + region * (1 + desk[RANKS]) + 1 + rank]
    return address


@part
def _scratch(x: Array, desk: Array, rank: int, number: int) -> Array:
    address = desk[HEAD + desk[RANKS] + rank] + number % SETS * desk[SCRATCH_BYTES]
    found: Array = array_at(address, desk[SCRATCH_BYTES] // x.itemsize, x)
    return found


@part
def _array_of(x: Array, desk: Array, rank: int, number: int) -> Array:
    """What a rank has brought to a round: as many elements as the one that reads it may need. Of an array that others
    do not see they see a copy, in which the rank's own chunk is missing: it is added to x itself."""
    place = load_acquire(desk[HEAD + rank] + WORD * (PLACES + number % SETS))
    if place == IN_SCRATCH and rank == desk[RANK]:
        found: Array = array_at(x.ctypes.data, x.shape[0], x)
    elif place == IN_SCRATCH:
        found = _scratch(x, desk, rank, number)
    else:
        region, offset = place >> OFFSET_BITS, place & ((1 << OFFSET_BITS) - 1)
        found = array_at(_base(desk, region, rank) + offset, (_base(desk, region, -1) - offset) // x.itemsize, x)
    return found


@part
def _who_differs(desk: Array, number: int, signature: int) -> int:
    """A rank that came to this round for something else; -1 where all came for the same."""
    mask = (1 << ROUND_BITS) - 1
    for rank in range(desk[RANKS]):
        ready = load_acquire(desk[HEAD + rank] + WORD * READY)
        if ready >> ROUND_BITS == number:
            if ready & mask != signature & mask:
                return rank
        elif load_acquire(desk[HEAD + rank] + WORD * (SIGNATURES + number % SETS)) != signature:
            return rank
    return -1


@part
def _all_are_seen(desk: Array, number: int) -> bool:
    for rank in range(desk[RANKS]):
        if load_acquire(desk[HEAD + rank] + WORD * (PLACES + number % SETS)) == NOT_SEEN:
            return False
    return True


@part
def _chunk(desk: Array, bounds: Array, count: int, rank: int) -> tuple[int, int]:
    if bounds.shape[0] > 0:
        return bounds[rank], bounds[rank + 1]
    short, longer = count // desk[RANKS], count % desk[RANKS]
    lo = rank * short + min(rank, longer)
    return lo, lo + short + (1 if rank < longer else 0)


@part
def _copy(out: Array, at: int, x: Array, start: int, count: int) -> None:
    to, of = out[at : at + count], x[start : start + count]
    for i in range(count):
        to[i] = of[i]


@part
def _copy_others(out: Array, x: Array, bounds: Array, desk: Array, count: int, stop: int) -> None:
    """out[:stop] = x[:stop], this rank's chunk excepted."""
    lo, hi = _chunk(desk, bounds, count, desk[RANK])
    _copy(out, 0, x, 0, lo)
    _copy(out, hi, x, hi, stop - hi)


@part
def _gather(x: Array, bounds: Array, desk: Array, count: int, number: int) -> None:
    for step in range(1, desk[RANKS]):
        rank = (desk[RANK] + step) % desk[RANKS]
        lo, hi = _chunk(desk, bounds, count, rank)
        _copy(x, lo, _array_of(x, desk, rank, number), lo, hi - lo)


@part
def _sum_scratch(x: Array, work: Array, desk: Array, format: int, count: int, number: int) -> None:
    """x = the sum of what stands in all ranks' scratch."""
    if desk[RANKS] == 2 and format == OWN:
        first, second = _scratch(x, desk, 0, number), _scratch(x, desk, 1, number)
        for i in range(count):
            x[i] = first[i] + second[i]
        return
    size = min(BLOCK, work.shape[0])
    if size == 0:
        raise ValueError("meet: there is no work memory")
    for start in range(0, count, size):
        into = work[: min(size, count - start)]
        for rank in range(desk[RANKS]):
            _take(into, _scratch(x, desk, rank, number), start, format, rank > 0)
        _put(x, start, into, format)


@part
def _sum_chunk(
    x: Array,
    work: Array,
    bounds: Array,
    program: Array,
    desk: Array,
    operation: int,
    format: int,
    count: int,
    number: int,
) -> None:
    """Add up this rank's chunk of all ranks' arrays, and write it to all of them, or to x alone."""
    ranks, rank = desk[RANKS], desk[RANK]
    lo, hi = _chunk(desk, bounds, count, rank)
    if ranks == 2 and format == OWN and program.shape[0] == 0:
        mine, other = _array_of(x, desk, rank, number), _array_of(x, desk, 1 - rank, number)
        _sum_two(mine[lo:hi], other[lo:hi], operation == SUM)
        return
    size = min(BLOCK, work.shape[0] // _depth(program))
    if size == 0:
        raise ValueError("meet: there is too little work memory for the program")
    for start in range(lo, hi, size):
        stop = min(hi, start + size)
        total = work[: stop - start]
        if program.shape[0] == 0:
            for r in range(ranks):
                _take(total, _array_of(x, desk, r, number), start, format, r > 0)
        else:
            _run(total, work, size, program, x, desk, number, format, start, count)
        if operation == SCATTER:
            _put(x, start, total, format)
            continue
        for r in range(ranks):
            _put(_array_of(x, desk, r, number), start, total, format)


@part
def _sum_two(mine: Array, other: Array, both: bool) -> None:
    """The sum, to both or to mine. No third name for what is one of them: then the loop has vectors."""
    if not both:
        for i in range(mine.shape[0]):
            mine[i] += other[i]
        return
    for i in range(mine.shape[0]):
        total = mine[i] + other[i]
        mine[i] = total
        other[i] = total


@part
def _depth(program: Array) -> int:
    """How many sums the program keeps at a time."""
    depth = deepest = 0
    for k in range(program.shape[0]):
        depth += 1
        deepest = max(deepest, depth)
        depth -= program[k, 2]
    return max(1, deepest)


@part
def _run(
    total: Array,
    work: Array,
    size: int,
    program: Array,
    x: Array,
    desk: Array,
    number: int,
    format: int,
    start: int,
    count: int,
) -> None:
    """Add one block of all pieces in the program's order; the sum is left in ``total``, the front of ``work``."""
    depth, length = 0, total.shape[0]
    for k in range(program.shape[0]):
        rank, piece, additions = program[k, 0], program[k, 1], program[k, 2]
        into = work[depth * size : depth * size + length]
        _take(into, _array_of(x, desk, rank, number), piece * count + start, format, False)
        depth += 1
        for _ in range(additions):
            depth -= 1
            above = work[depth * size : depth * size + length]
            below = work[(depth - 1) * size : (depth - 1) * size + length]
            for i in range(length):
                below[i] += above[i]


@part
def _take(into: Array, x: Array, start: int, format: int, adds: bool) -> None:
    """into = x[start:], or into += x[start:]; in into's dtype."""
    of = x[start : start + into.shape[0]]
    if format == BFLOAT16 and adds:
        for i in range(into.shape[0]):
            into[i] += float_of_bits(np.uint32(of[i]) << np.uint32(16))
    elif format == BFLOAT16:
        for i in range(into.shape[0]):
            into[i] = float_of_bits(np.uint32(of[i]) << np.uint32(16))
    elif format == FLOAT16 and adds:
        for i in range(into.shape[0]):
            into[i] += from_half(np.uint16(of[i]))
    elif format == FLOAT16:
        for i in range(into.shape[0]):
            into[i] = from_half(np.uint16(of[i]))
    elif adds:
        for i in range(into.shape[0]):
            into[i] += of[i]
    else:
        for i in range(into.shape[0]):
            into[i] = of[i]


@part
def _put(out: Array, start: int, x: Array, format: int) -> None:
    """out[start:] = x, in out's dtype."""
    to = out[start : start + x.shape[0]]
    if format == BFLOAT16:
        for i in range(x.shape[0]):
            to[i] = bfloat16_of(np.float32(x[i]))
    elif format == FLOAT16:
        for i in range(x.shape[0]):
            to[i] = to_half(np.float32(x[i]))
    else:
        for i in range(x.shape[0]):
            to[i] = x[i]
