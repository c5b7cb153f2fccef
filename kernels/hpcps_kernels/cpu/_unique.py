"""The parts of `unique`: keys become small numbers of the same order, which are marked in a bitmap or sorted.

Keys of a data set share most of their bits: a table's number in the upper ones, zeros in the lower. What does not
vary is taken out. If what is left is dense, a bit of a map for each number says whether it occurs, and the bits
below it are its rank. Otherwise each number is packed into one word with its position, and the words are radix
sorted by their upper bits, as many as tell n random numbers apart; the few that are left are then sorted among
themselves.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from hpcps_kernels.cpu._jit import part
from hpcps_kernels.cpu._prefetch import prefetch
from hpcps_kernels.interface import Array

Whole: TypeAlias = Any  # a NumPy integer, for the most part unsigned

DENSE = 6  # a bitmap may have 2**DENSE bits a key: they are cleared and counted a word at a time
HOLE = 8  # fewer bits than that are left in a number although they do not vary
DIGIT = 10  # bits sorted in one pass
SMALL_DIGIT = 8  # the same, where few words are sorted
FEW = 40  # words sorted by insertion
SIGN = np.uint64(1 << 63)
ONE = np.uint64(1)
FIVE, LOW, BIT = np.uint32(5), np.uint32(31), np.uint32(1)  # a number's word in the bitmap, and its bit there
AHEAD = 16


def scratch_words(n: int) -> int:
    """How many words of scratch n keys need: the bitmap's of `widest_bitmap`, or n to sort."""
    return 1 << max(n.bit_length() + DENSE - 5, 0)


@part
def widest_bitmap(n: Whole) -> Whole:
    """The bits of the largest numbers that are marked; 32 at most, so that they fit where ranks will be."""
    return min(bits_needed(n) + DENSE, 32)


@part
def varying_bits(x: Array) -> tuple[Whole, Whole]:
    """A base and a mask: unsigned x - base lies within the mask, in the order of x."""
    low = x[0]
    for i in range(x.shape[0]):
        low = min(low, x[i])
    above, changing = np.uint64(0), np.uint64(0)
    for i in range(x.shape[0]):
        above |= np.uint64(x[i]) - np.uint64(low)
        changing |= np.uint64(x[i]) ^ np.uint64(x[0])
    if _bits_set(above) <= _bits_set(changing):
        return np.uint64(low), above
    return SIGN ^ ((np.uint64(x[0]) ^ SIGN) & ~changing), changing


@part
def segments_of(mask: Whole) -> tuple[Array, Whole]:
    """How `squeeze` takes the holes out of a number: (segments, 2) of shift and mask; and the width."""
    segments = np.zeros((64 // HOLE + 1, 2), np.uint64)
    count, width, start, last = 0, 0, 0, 0
    for bit in range(64):
        if (mask >> np.uint64(bit)) & ONE:
            if count == 0 or bit - last > HOLE:
                start = width
                segments[count, 0] = bit - width
                count += 1
            last = bit
            width = bit - int(segments[count - 1, 0]) + 1
            segments[count - 1, 1] = _ones(width) & ~_ones(start)
    return segments[: max(count, 1)], width


@part
def squeeze(numbers: Array, x: Array, base: Whole, segments: Array) -> None:
    """Unsigned x - base without the holes, in numbers' dtype."""
    to = numbers.dtype.type
    for s in range(segments.shape[0]):
        shift, mask = segments[s, 0], segments[s, 1]
        if s == 0:
            for i in range(x.shape[0]):
                numbers[i] = to(((np.uint64(x[i]) - base) >> shift) & mask)
        else:
            for i in range(x.shape[0]):
                numbers[i] |= to(((np.uint64(x[i]) - base) >> shift) & mask)


@part
def unique_by_bitmap(
    keys: Array, inverse: Array, x: Array, base: Whole, segments: Array, width: Whole, scratch: Array
) -> Whole:
    n, numbers = x.shape[0], inverse.view(np.uint32)
    squeeze(numbers, x, base, segments)
    words = 1 << max(width - 5, 0)
    marks = scratch[:words].view(np.uint32).reshape(words, 2)  # bits, and how many there are in the words before
    marks[:] = 0
    for i in range(n):
        prefetch(marks, numbers[min(i + AHEAD, n - 1)] >> FIVE, 0)
        marks[numbers[i] >> FIVE, 0] |= BIT << (numbers[i] & LOW)
    count = 0
    for w in range(marks.shape[0]):
        marks[w, 1] = count
        count += _bits_set(marks[w, 0])
    for i in range(n):
        prefetch(marks, numbers[min(i + AHEAD, n - 1)] >> FIVE, 0)
        word, below = numbers[i] >> FIVE, (BIT << (numbers[i] & LOW)) - BIT
        inverse[i] = marks[word, 1] + _bits_set(marks[word, 0] & below)
    for i in range(n):  # by itself: see `unique_by_sorting`
        keys[np.uint32(inverse[i])] = x[i]
    return count


@part
def unique_by_sorting(
    keys: Array, inverse: Array, x: Array, base: Whole, segments: Array, width: Whole, scratch: Array
) -> Whole:
    n = x.shape[0]
    places = bits_needed(n - 1)  # bits of a position, the lower ones of a word
    kept = min(width, 64 - places)
    left_out, shift = np.uint64(width - kept), np.uint64(places)
    words, other = keys.view(np.uint64), scratch
    squeeze(words, x, base, segments)
    for i in range(n):
        words[i] = ((words[i] >> left_out) << shift) | np.uint64(i)
    passes = min((places + 1 + DIGIT) // DIGIT, (kept + DIGIT - 1) // DIGIT)
    low = max(places, places + kept - passes * DIGIT)
    if not _radix_sort(words, other, low, places + kept, DIGIT):
        other[:] = words
    words, other = other, words  # keys are free from here on
    if low > places:
        _sort_runs(words, other, low, places)
    if left_out:
        _sort_runs_by_key(words, other, x, base, places)
    place = _ones(places)
    for j in range(n):  # by itself: loads must not wait for stores whose place they decide
        keys[j] = x[words[j] & place]
    rank, before = 0, keys[0]
    for j in range(n):
        key = keys[j]
        rank += key != before
        keys[rank] = before = key
        inverse[words[j] & place] = rank
    return rank + 1


@part
def _radix_sort(words: Array, other: Array, low: Whole, high: Whole, digit: Whole) -> bool:
    """Sort by bits low .. high - 1, keeping the order of equals; true if the sorted words are in `other`."""
    starts, mask = np.empty(1 << digit, np.uint32), _ones(digit)
    in_other = False
    for first in range(low, high, digit):
        shift = np.uint64(first)
        starts[:] = 0
        for i in range(words.shape[0]):
            starts[(words[i] >> shift) & mask] += np.uint32(1)
        if starts[(words[0] >> shift) & mask] == words.shape[0]:
            continue
        total = np.uint32(0)
        for d in range(starts.shape[0]):
            here = starts[d]
            starts[d] = total
            total += here
        for i in range(words.shape[0]):
            word = words[i]
            d = (word >> shift) & mask
            other[starts[d]] = word
            starts[d] += np.uint32(1)
        words, other = other, words
        in_other = not in_other
    return in_other


@part
def _sort_runs(words: Array, other: Array, low: Whole, places: Whole) -> None:
    """Sort words whose bits from `low` on agree by the rest."""
    n, shift, start = words.shape[0], np.uint64(low), 0
    while start < n:
        stop = start + 1
        while stop < n and words[stop] >> shift == words[start] >> shift:
            stop += 1
        if stop - start > 1:
            _sort_few(words[start:stop], other[start:stop], places, low)
        start = stop


@part
def _sort_runs_by_key(words: Array, other: Array, x: Array, base: Whole, places: Whole) -> None:
    """Sort words that agree in their numbers by what did not fit into them: the lower bits of their keys."""
    n, shift, place, start = words.shape[0], np.uint64(places), _ones(places), 0
    while start < n:
        stop, number, same = start + 1, words[start] >> shift, True
        while stop < n and words[stop] >> shift == number:
            same &= x[np.int64(words[stop] & place)] == x[np.int64(words[start] & place)]
            stop += 1
        if not same:
            for j in range(start, stop):
                i = words[j] & place
                words[j] = ((np.uint64(x[np.int64(i)]) - base) << shift) | i
            _sort_few(words[start:stop], other[start:stop], places, 64)
            for j in range(start, stop):
                words[j] = (number << shift) | (words[j] & place)
        start = stop


@part
def _sort_few(words: Array, other: Array, low: Whole, high: Whole) -> None:
    """Sort by bits low .. high - 1, keeping the order of equals; the others are the same, or in order."""
    n = words.shape[0]
    if n > FEW:
        in_order = True
        for j in range(1, n):
            in_order &= words[j - 1] <= words[j]
        if not in_order and _radix_sort(words, other, low, high, SMALL_DIGIT):
            words[:] = other
        return
    for j in range(1, n):
        word = words[j]
        k = j
        while k > 0 and words[k - 1] > word:
            words[k] = words[k - 1]
            k -= 1
        words[k] = word


@part
def _ones(count: Whole) -> Whole:
    """The number of that many low bits, 0..64."""
    return ~np.uint64(0) if count >= 64 else (ONE << np.uint64(count)) - ONE


@part
def bits_needed(value: Whole) -> Whole:
    bits = 0
    while value >> bits:
        bits += 1
    return bits


@part
def _bits_set(value: Whole) -> Whole:
    v = np.uint64(value)  # LLVM knows this for what it is, one instruction
    v -= (v >> ONE) & np.uint64(0x5555555555555555)
    v = (v & np.uint64(0x3333333333333333)) + ((v >> np.uint64(2)) & np.uint64(0x3333333333333333))
    v = (v + (v >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((v * np.uint64(0x0101010101010101)) >> np.uint64(56))
