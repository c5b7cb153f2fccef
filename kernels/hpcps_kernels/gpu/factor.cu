// Factorization machines and matrix factorisation: column 0 of a row is its linear weight, the others its factors.
#include "ranges.cuh"

// A warp a sample: its score, and its sums of x times the rows' factors (n, width), if they are wanted.
template <class T>
__global__ void fm_scores(T* scores, T* sums, i64 wanted, const i64* indptr, i64 n, const i32* indices, const T* values,
                          i64 valued, const T* table, i64 width, const T* bias, i64 lanes, const double* told) {
    if (told[1] != 0) return;
    auto linear = [&](i64 e, i64 f) { return (valued ? values[e] : T(1)) * table[indices[e] * width + f]; };
    auto squared = [&](i64 e, i64 f) {
        T product = linear(e, f);
        return product * product;
    };
    int lane = threadIdx.x % 32;
    for (i64 i = this_thread() / 32; i < n; i += all_threads() / 32) {
        T score = 0;
        for (i64 first = 0; first < width; first += lanes) {
            i64 f = first + lane % lanes;
            T sum = range_sum<T>(indptr[i], indptr[i + 1], f, width, lanes, linear);
            T square = range_sum<T>(indptr[i], indptr[i + 1], f, width, lanes, squared);
            if (f < width && wanted && lane < lanes) sums[i * width + f] = sum;
            if (f < width) score += f == 0 ? sum : (sum * sum - square) / 2;
        }
        score = fold_lanes(score, lanes, Plus());
        if (lane == 0) scores[i] = bias[0] + score;
    }
}

// Rows of the table that entries have; the others are 0 before.
template <class T>
__global__ void fm_gradient(T* gradient, const T* residual, const T* sums, const i32* indices, const T* values,
                            i64 valued, const T* table, i64 columns, i64 width, const i64* sample, const i64* key,
                            const i64* order, const i64* starts, const i64* numbers, i64 nnz, i64 lanes,
                            const double* told) {
    if (told[1] != 0) return;
    auto term = [&](i64 p, i64 f) {
        i64 e = order[p], i = sample[e];
        if (key[e] >= columns) return T(0);
        T x = valued ? values[e] : T(1);
        T by_entry = f == 0 ? T(1) : sums[i * width + f] - x * table[indices[e] * width + f];
        return residual[i] * x * by_entry;
    };
    range_sums<T>(starts, numbers[nnz - 1], width, lanes, term, [&](i64 g, i64 f, T sum) {
        i64 column = key[order[starts[g]]];
        if (column < columns) gradient[column * width + f] = sum;
    });
}

// `lanes` threads a sample.
template <class T>
__global__ void mf_scores(T* scores, const i32* users, const i32* items, i64 n, const T* user, const T* item, i64 width,
                          const T* bias, i64 lanes, const double* told) {
    if (told[1] != 0) return;
    i64 first = this_thread() / lanes, step = all_threads() / lanes;
    for (i64 i = first; i - first < n; i += step) {  // whole warps, so that all lanes take part
        T score = 0;
        if (i < n) {
            const T *u = user + users[i] * width, *v = item + items[i] * width;
            for (i64 f = threadIdx.x % lanes; f < width; f += lanes) score += f == 0 ? u[0] + v[0] : u[f] * v[f];
        }
        score = fold_lanes(score, lanes, Plus());
        if (i < n && threadIdx.x % lanes == 0) scores[i] = bias[0] + score;
    }
}

// Rows of one side's table that samples have, by the rows of the other side; the others are 0 before.
template <class T>
__global__ void mf_gradient(T* gradient, const T* residual, const i32* rows, const i32* others, const T* other,
                            i64 width, const i64* order, const i64* starts, const i64* numbers, i64 n, i64 lanes,
                            const double* told) {
    if (told[1] != 0) return;
    auto term = [&](i64 p, i64 f) {
        i64 i = order[p];
        return residual[i] * (f == 0 ? T(1) : other[others[i] * width + f]);
    };
    range_sums<T>(starts, numbers[n - 1], width, lanes, term,
                  [&](i64 g, i64 f, T sum) { gradient[rows[order[starts[g]]] * width + f] = sum; });
}
