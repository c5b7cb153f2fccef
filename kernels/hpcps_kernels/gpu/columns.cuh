// Column sums of a matrix, a chunk of rows a block, in an order that goes by the shape alone.
#pragma once
#include "numbers.cuh"

// The block adds up value(row, column) over `chunk` rows of `lanes` columns, a power of two up to 32, and writes them to
// its row of out (chunks, n). Threads of a column take every so-many-th row each; then they are added in order.
template <class T, class Value>
__device__ __forceinline__ void column_sums(T* out, i64 rows, i64 n, int lanes, i64 chunk, Value value) {
    __shared__ T sums[256];
    i64 groups = (n + lanes - 1) / lanes, place = blockIdx.x / groups;
    i64 column = blockIdx.x % groups * lanes + threadIdx.x % lanes;
    i64 end = smaller((place + 1) * chunk, rows);
    int strands = blockDim.x / lanes;
    T sum = 0;
    if (column < n) {
#pragma unroll 4
        for (i64 row = place * chunk + threadIdx.x / lanes; row < end; row += strands) sum += value(row, column);
    }
    sums[threadIdx.x] = sum;
    for (int half = strands / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half * lanes) sums[threadIdx.x] += sums[threadIdx.x + half * lanes];
    }
    if (threadIdx.x < lanes && column < n) out[place * n + column] = sums[threadIdx.x];
}
