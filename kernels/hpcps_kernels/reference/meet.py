"""Ranks of one node that add up arrays which all of them see: each its share.

The ranks meet in rounds, numbered from 1 in the same order on all of them. In a round a rank says where its array
lies, waits until all have said so, does its share of the work, says that it has, and waits until all have. `desk.py`
has the words by which they do. The order in which memory is written and read is part of the contract: what a rank
wrote before it raised a word is seen by whoever finds the word raised.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from hpcps_kernels import desk as at
from hpcps_kernels.interface import Array
from hpcps_kernels.spec import WIDE_FORMATS

SUM, SCATTER, GATHER = 0, 1, 2  # the positions of their names in the spec
MASK = 2**at.ROUND_BITS - 1


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
    """Go on with round ``number`` from ``state`` (0 at first), looking at each rank's words up to ``spins`` times; with
    0 it is begun and no more. Later rounds may be begun before this one is finished, up to SETS at a time, but not
    gone on with.

    Returns the state reached: FINISHED, or what is waited for (call again), or UNSEEN (this round has ended, nothing
    was done: an array lies where not all see it and is larger than a set of scratch), or -1 - r where rank r came to
    this round with another operation, dtype, format or count. ``x`` (N,) W holds what this rank brings, and may not be
    touched until the round is finished; ``count`` <= N elements are worked on. ``desk`` is the rank's own
    (`desk.make_desk`); its addresses must be right, or the process dies.

    ``operation``: "sum": x becomes the sum of all ranks' arrays; "scatter": of the sum only this rank's chunk is
    written to x; "gather": all other ranks' chunks are written to x. Chunk r is bounds[r] .. bounds[r + 1], ascending
    from 0 to count, or, where ``bounds`` is empty, the r-th of equal chunks, longer ones first.

    Added from the first rank to the last, or as ``program`` (K, 3) says, whose rows are (rank, piece, additions): the
    arrays then hold pieces of ``count`` elements, one after the other; push the piece of the rank, then, ``additions``
    times, add the last sum to the one before it. The sum is written to every rank's first piece.

    ``format`` tells what uint16 are: "bfloat16" or "float16". They are added as float32 and rounded once. ``work``
    (w,) uint8, w a multiple of 8, is overwritten: 2048 numbers for each sum that the program keeps at a time are best.

    Raises ValueError where bounds, program, count or work cannot be right.
    """
    _check(x, bounds, program, desk, count, work)
    name = WIDE_FORMATS[format]
    signature = ((count * 4 + operation) * 4 + format) * 16 + x.itemsize
    is_small = operation == SUM and len(program) == 0 and x.itemsize * count <= desk[at.SMALL_BYTES]
    ranks, rank, turn = int(desk[at.RANKS]), int(desk[at.RANK]), number % at.SETS
    lines = [_at(int(desk[at.HEAD + r]), at.LINE_WORDS, np.dtype(np.int64)) for r in range(ranks)]

    def all_reached(word: int, value: int) -> bool:
        return any(all(line[word] >= value for line in lines) for _ in range(max(1, spins)))

    if state == at.WAITING_FOR_SETS:
        if not all_reached(at.WORKED, number - at.SETS):
            return at.WAITING_FOR_SETS
        place = at.IN_SCRATCH if is_small else _place(x, desk)
        if place == at.IN_SCRATCH:
            own = _chunk(bounds, count, ranks, rank) if operation == GATHER else slice(0, len(x))
            _scratch(x, desk, rank, number)[own] = x[own]
        lines[rank][at.PLACES + turn] = place
        lines[rank][at.SIGNATURES + turn] = signature
        lines[rank][at.READY] = number << at.ROUND_BITS | signature & MASK
        if spins == 0:
            return at.WAITING_FOR_ARRAYS
    if state <= at.WAITING_FOR_ARRAYS:
        if not all_reached(at.READY, number << at.ROUND_BITS):
            return at.WAITING_FOR_ARRAYS
        for r, line in enumerate(lines):
            if line[at.SIGNATURES + turn] != signature:
                return -1 - r
        places = [int(line[at.PLACES + turn]) for line in lines]
        if at.NOT_SEEN not in places:
            arrays = [_array(x, desk, r, number, place) for r, place in enumerate(places)]
            if is_small:
                x[:count] = _total(arrays, program, slice(0, count), count, name)
            elif operation == GATHER:
                for r in range(ranks):
                    if r != rank:
                        x[_chunk(bounds, count, ranks, r)] = arrays[r][_chunk(bounds, count, ranks, r)]
            else:
                own = _chunk(bounds, count, ranks, rank)
                total = _total(arrays, program, own, count, name)
                for array in arrays if operation == SUM else [x]:
                    array[own] = total
        lines[rank][at.WORKED] = number
        if at.NOT_SEEN in places:
            return at.UNSEEN
        if is_small:
            return at.FINISHED
    if not all_reached(at.WORKED, number):
        return at.WAITING_FOR_WORK
    if operation == SUM and _place(x, desk) < 0:
        x[:count] = _scratch(x, desk, rank, number)[:count]
    return at.FINISHED


def meet_sum(x: Array, work: Array, desk: Array, format: int, number: int, spins: int) -> int:
    """:func:`meet` from the beginning of a round whose operation is "sum" of all of ``x``, in rank order: the same with
    fewer arguments, each of which costs a call some 30 ns. What is left is gone on with by :func:`meet`."""
    bounds, program = np.empty(0, np.int64), np.empty((0, 3), np.int64)
    return meet(x, work, bounds, program, desk, SUM, format, len(x), number, at.WAITING_FOR_SETS, spins)


def _total(arrays: list[Array], program: Array, chunk: slice, count: int, format: str) -> Array:
    rows = program.tolist() or [(rank, 0, int(rank > 0)) for rank in range(len(arrays))]
    sums: list[Array] = []
    for rank, piece, additions in rows:
        sums.append(_wide(arrays[rank][piece * count + chunk.start : piece * count + chunk.stop], format))
        for _ in range(additions):
            last = sums.pop()
            sums[-1] = sums[-1] + last
    return _narrow(sums[0], format)


def _wide(x: Array, format: str) -> Array:
    if format == "bfloat16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.view(np.float16).astype(np.float32) if format == "float16" else x


def _narrow(x: Array, format: str) -> Array:
    if format == "bfloat16":
        from hpcps_kernels.reference.codec import to_bfloat16

        bits = np.empty(len(x), np.uint16)
        to_bfloat16(bits, x)
        return bits
    return x.astype(np.float16).view(np.uint16) if format == "float16" else x


def _at(address: int, count: int, dtype: np.dtype[Any]) -> Array:
    """``count`` elements at an address."""
    raw: Array = np.ctypeslib.as_array((ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address))
    return raw.view(dtype)


def _scratch(x: Array, desk: Array, rank: int, number: int) -> Array:
    address = int(desk[at.HEAD + desk[at.RANKS] + rank] + number % at.SETS * desk[at.SCRATCH_BYTES])
    return _at(address, int(desk[at.SCRATCH_BYTES]) // x.itemsize, x.dtype)


def _regions(desk: Array) -> Array:
    """(regions, 1 + P): the bytes of a piece, and the address of each rank's."""
    ranks = int(desk[at.RANKS])
    return desk[at.HEAD + 2 * ranks :].reshape(int(desk[at.REGIONS]), 1 + ranks)


def _place(x: Array, desk: Array) -> int:
    """Where the others find x; IN_SCRATCH where it is in no region and fits there."""
    for region, (size, *starts) in enumerate(_regions(desk).tolist()):
        offset: int = x.ctypes.data - starts[int(desk[at.RANK])]
        if 0 <= offset <= size - x.nbytes:
            return region << at.OFFSET_BITS | offset
    return at.IN_SCRATCH if x.nbytes <= desk[at.SCRATCH_BYTES] else at.NOT_SEEN


def _array(x: Array, desk: Array, rank: int, number: int, place: int) -> Array:
    """What a rank has brought; it is not known here how much, but that what is needed is there."""
    if place == at.IN_SCRATCH:
        return _scratch(x, desk, rank, number)
    region, offset = place >> at.OFFSET_BITS, place & (2**at.OFFSET_BITS - 1)
    size, *starts = _regions(desk)[region].tolist()
    return _at(starts[rank] + offset, min(size - offset, 2**40) // x.itemsize, x.dtype)


def _chunk(bounds: Array, count: int, ranks: int, rank: int) -> slice:
    if len(bounds):
        return slice(int(bounds[rank]), int(bounds[rank + 1]))
    short, longer = divmod(count, ranks)
    start = rank * short + min(rank, longer)
    return slice(start, start + short + (rank < longer))


def _check(x: Array, bounds: Array, program: Array, desk: Array, count: int, work: Array) -> None:
    ranks = int(desk[at.RANKS])
    if not 0 <= count <= len(x) or len(bounds) not in (0, ranks + 1):
        raise ValueError("meet: x must hold count elements, and bounds one more than there are ranks")
    if len(bounds) and (bounds[0] != 0 or bounds[-1] != count or (np.diff(bounds) < 0).any()):
        raise ValueError("meet: bounds must rise from 0 to count")
    if ((program[:, 0] < 0) | (program[:, 0] >= ranks)).any():
        raise ValueError("meet: the program names a rank that is not there")
    if len(work) == 0:
        raise ValueError("meet: there is no work memory")
