// Checks of what arrays hold. told[1] becomes 1 where something is wrong; nobody makes it 0 again.
#include "numbers.cuh"

template <class I> __global__ void numbers_below(const I* index, i64 n, i64 rows, double* told) {
    bool outside = false;
    for (i64 i = this_thread(); i < n; i += all_threads()) outside |= index[i] < 0 || index[i] >= rows;
    if (outside) told[1] = 1;
}

// Samples whose entries are inside the arrays, and entries with columns below `columns`: all of them, or the samples' alone.
template <class I>
__global__ void entries(const i64* indptr, i64 n, const I* indices, i64 nnz, i64 columns, i64 all, double* told) {
    bool outside = false;
    for (i64 i = this_thread(); i <= n; i += all_threads()) {
        outside |= indptr[i] < 0 || indptr[i] > nnz || (i < n && indptr[i + 1] < indptr[i]);
    }
    i64 first = all || indptr[0] < 0 ? 0 : indptr[0], end = all ? nnz : smaller(indptr[n], nnz);
    for (i64 e = first + this_thread(); e < end; e += all_threads()) outside |= indices[e] < 0 || indices[e] >= columns;
    if (outside) told[1] = 1;
}

template <class T> __global__ void clear(T* out, i64 n, const double* told) {
    if (told[1] != 0) return;
    for (i64 i = this_thread(); i < n; i += all_threads()) out[i] = 0;
}
