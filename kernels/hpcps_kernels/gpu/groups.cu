// Which entries have the same key: positions sorted by key, and where groups begin among them.
#include "numbers.cuh"

// What sample an entry belongs to, and its key: `nobody`, above all keys, where it belongs to none.
template <class I>
__global__ void owners(i64* sample, i64* key, const i64* indptr, i64 n, const I* indices, i64 nnz, i64 nobody,
                       const double* told) {
    bool wrong = told[1] != 0;
    for (i64 e = this_thread(); e < nnz; e += all_threads()) {
        bool owned = !wrong && indptr[0] <= e && e < indptr[n];
        i64 low = 0, high = n;  // the last sample that begins at e or before is in low .. high - 1
        while (owned && high - low > 1) {
            i64 middle = (low + high) / 2;
            (indptr[middle] <= e ? low : high) = middle;
        }
        sample[e] = low;
        key[e] = owned ? (i64)indices[e] : nobody;
    }
}

template <class I> __global__ void mark_heads(i64* head, const I* keys, const i64* order, i64 m) {
    for (i64 p = this_thread(); p < m; p += all_threads()) head[p] = p == 0 || keys[order[p]] != keys[order[p - 1]];
}

// starts (m + 1,): where groups begin, and the end. numbers: the running sum of heads.
__global__ void find_starts(i64* starts, const i64* head, const i64* numbers, i64 m) {
    for (i64 p = this_thread(); p < m; p += all_threads()) {
        if (head[p]) starts[numbers[p] - 1] = p;
        if (p == m - 1) starts[numbers[p]] = m;
    }
}
