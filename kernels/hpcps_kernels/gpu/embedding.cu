// Bags of a table's rows: sums or means, and their gradients.
#include "ranges.cuh"

// What divides a bag's sum.
template <class T> __device__ __forceinline__ T divisor(const i64* indptr, i64 bag, i64 mean) {
    i64 entries = indptr[bag + 1] - indptr[bag];
    return mean && entries > 1 ? (T)entries : T(1);
}

template <class T>
__global__ void forward(T* out, const i64* indptr, i64 n, const i32* indices, const T* values, i64 valued,
                        const T* table, i64 width, i64 mean, i64 lanes, const double* told) {
    if (told[1] != 0) return;
    auto term = [&](i64 e, i64 w) { return (valued ? values[e] : T(1)) * table[indices[e] * width + w]; };
    range_sums<T>(indptr, n, width, lanes, term,
                  [&](i64 i, i64 w, T sum) { out[i * width + w] = sum / divisor<T>(indptr, i, mean); });
}

// Rows of the table that entries have; the others are 0 before.
template <class T>
__global__ void backward(T* table_gradient, i64 rows, const i64* indptr, const T* values, i64 valued, const T* gradient,
                         i64 width, i64 mean, const i64* sample, const i64* key, const i64* order, const i64* starts,
                         const i64* numbers, i64 nnz, i64 lanes, const double* told) {
    if (told[1] != 0) return;
    auto term = [&](i64 p, i64 w) {
        i64 e = order[p], i = sample[e];
        return (valued ? values[e] : T(1)) / divisor<T>(indptr, i, mean) * gradient[i * width + w];
    };
    range_sums<T>(starts, numbers[nnz - 1], width, lanes, term, [&](i64 g, i64 w, T sum) {
        i64 row = key[order[starts[g]]];
        if (row < rows) table_gradient[row * width + w] = sum;
    });
}
