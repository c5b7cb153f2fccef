// Sums over ranges of entries: a warp for a range. Neighbouring lanes take neighbouring columns; where there are fewer
// columns than lanes, the others take every so-many-th entry. The order goes by the range's length and the width alone.
#pragma once
#include "numbers.cuh"

// The sum of term(entry, column) over begin .. end - 1; all lanes of the warp must come, with columns of `lanes` lanes.
template <class T, class Term>
__device__ __forceinline__ T range_sum(i64 begin, i64 end, i64 column, i64 width, int lanes, Term term) {
    T sum = 0;
    if (column < width)
        for (i64 p = begin + threadIdx.x % 32 / lanes; p < end; p += 32 / lanes) sum += term(p, column);
    for (int d = 16; d >= lanes; d /= 2) sum += __shfl_xor_sync(EVERY_LANE, sum, d);
    return sum;
}

// write(range, column, sum) for every range starts[r] .. starts[r + 1] - 1 and every column.
template <class T, class Term, class Write>
__device__ __forceinline__ void range_sums(const i64* starts, i64 count, i64 width, int lanes, Term term, Write write) {
    for (i64 r = this_thread() / 32; r < count; r += all_threads() / 32)
        for (i64 first = 0; first < width; first += lanes) {
            i64 column = first + threadIdx.x % lanes;
            T sum = range_sum<T>(starts[r], starts[r + 1], column, width, lanes, term);
            if (threadIdx.x % 32 < lanes && column < width) write(r, column, sum);
        }
}
