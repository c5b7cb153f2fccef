// Linear models of sparse samples: scores, gradients of losses by their residuals, rows picked by number.
#include "ranges.cuh"

// scores (n, classes) = samples @ weight (columns, classes) + bias.
template <class T>
__global__ void scores(T* scores, const i64* indptr, i64 n, const i32* indices, const T* values, i64 valued,
                       const T* weight, const T* bias, i64 classes, i64 lanes, const double* told) {
    if (told[1] != 0) return;
    auto term = [&](i64 e, i64 k) { return (valued ? values[e] : T(1)) * weight[indices[e] * classes + k]; };
    range_sums<T>(indptr, n, classes, lanes, term, [&](i64 i, i64 k, T sum) { scores[i * classes + k] = bias[k] + sum; });
}

// Rows of gradient (columns, classes) that samples have entries of.
template <class T>
__global__ void gradient(T* gradient, const T* residual, const T* values, i64 valued, const i64* sample, const i64* key,
                         const i64* order, const i64* starts, const i64* numbers, i64 nnz, i64 columns, i64 classes,
                         i64 lanes, const double* told) {
    if (told[1] != 0) return;
    auto term = [&](i64 p, i64 k) {
        i64 e = order[p];
        return (valued ? values[e] : T(1)) * residual[sample[e] * classes + k];
    };
    range_sums<T>(starts, numbers[nnz - 1], classes, lanes, term, [&](i64 g, i64 k, T sum) {
        i64 column = key[order[starts[g]]];
        if (column < columns) gradient[column * classes + k] = sum;
    });
}

// How many entries the picked rows have. told[1] becomes 1 where a row is outside, or its entries are.
__global__ void lengths(i64* length, const i64* indptr, i64 rows, const i64* index, i64 m, i64 nnz, double* told) {
    for (i64 i = this_thread(); i < m; i += all_threads()) {
        i64 row = index[i], begin = 0, end = 0;
        bool wrong = row < 0 || row >= rows;
        if (!wrong) {
            begin = indptr[row];
            end = indptr[row + 1];
            wrong = begin < 0 || end < begin || end > nnz;
        }
        if (wrong) told[1] = 1;
        length[i] = wrong ? 0 : end - begin;
    }
}

// The picked rows one after the other; ends: the running sum of their lengths. A warp a row. Columns are looked at by a
// launch that does not write.
template <class T, class V>
__global__ void take(i64* indptr_out, i32* indices_out, T* values_out, i64 wanted, const i64* ends, const i64* indptr,
                     const i32* indices, const V* values, i64 valued, const i64* index, i64 m, const T* scale,
                     i64 scaled, i64 columns, i64 writes, double* told) {
    if (told[1] != 0) return;
    int lane = threadIdx.x % 32;
    for (i64 i = this_thread() / 32; i < m; i += all_threads() / 32) {
        i64 begin = indptr[index[i]], end = indptr[index[i] + 1], at = ends[i] - (end - begin);
        for (i64 e = begin + lane; e < end; e += 32) {
            i32 column = indices[e];
            bool outside = column < 0 || column >= columns;
            if (outside && !writes) told[1] = 1;
            if (outside || !writes) continue;
            i64 to = at + e - begin;
            indices_out[to] = column;
            if (wanted) values_out[to] = (valued ? (T)values[e] : T(1)) * (scaled ? scale[column] : T(1));
        }
        if (lane == 0 && writes) indptr_out[i + 1] = ends[i];
        if (lane == 0 && writes && i == 0) indptr_out[0] = 0;
    }
}
