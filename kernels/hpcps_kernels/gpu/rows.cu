// Rows picked out of a data set or a table by number, and the numbers of keys.
#include "numbers.cuh"

template <class T, class S>
__global__ void gather(T* out, const S* source, const i64* index, i64 m, i64 width, const T* shift, const T* scale,
                       const double* told) {
    if (told[1] != 0) return;
    for (i64 i = this_thread(); i < m * width; i += all_threads()) {
        auto [row, d] = cell(i, width);
        out[i] = (As<T, S>::number(source[index[row] * width + d]) - shift[d]) * scale[d];
    }
}

// A warp a row. Where a row's columns rise, its lanes write side by side; else one after the other, the later value last.
// told[1] becomes 1 for rows outside, or with entries or columns outside; those are not written.
template <class T, class V>
__global__ void gather_csr(T* out, const i64* indptr, const i32* indices, const V* values, i64 rows, i64 nnz,
                           const i64* index, i64 m, i64 width, const T* shift, const T* scale, double* told) {
    int lane = threadIdx.x % 32;
    for (i64 i = this_thread() / 32; i < m; i += all_threads() / 32) {
        i64 row = index[i];
        if (row < 0 || row >= rows) {
            told[1] = 1;
            continue;
        }
        i64 begin = indptr[row], end = indptr[row + 1];
        bool outside = begin < 0 || end < begin || end > nnz;
        if (outside) begin = end = 0;
        int falls = 0;
        for (i64 e = begin + lane; e < end; e += 32) {
            outside |= indices[e] < 0 || indices[e] >= width;
            falls |= e > begin && indices[e] <= indices[e - 1];
        }
        if (outside) told[1] = 1;
        if (fold_lanes((int)outside, 32, Plus())) continue;
        falls = fold_lanes(falls, 32, Plus());
        for (i64 d = lane; d < width; d += 32) out[i * width + d] = (T(0) - shift[d]) * scale[d];
        __syncwarp();
        int first = falls ? 0 : lane, step = falls ? 1 : 32;
        if (!falls || lane == 0)
            for (i64 e = begin + first; e < end; e += step) {
                i32 d = indices[e];
                out[i * width + d] = ((T)values[e] - shift[d]) * scale[d];
            }
    }
}

// out[i] = the first `width` columns of table[index[i]], whose rows are `pitch` apart.
template <class A>
__global__ void gather_rows(A* out, const A* table, const i64* index, i64 m, i64 width, i64 pitch, const double* told) {
    if (told[1] != 0) return;
    constexpr int w = 16 / sizeof(A);
    bool wide = aligned(out, table) && width % w == 0 && pitch % w == 0;
    each<w>(m * width, wide, [&](i64 i, auto w_) {
        WIDTH(w_);
        auto [row, d] = cell(i, width);
        store(out + i, load<W>(table + index[row] * pitch + d));
    });
}

// Group g of rows has the row of the table that its key tells; of them the last is written.
template <class A>
__global__ void scatter_rows(A* table, const A* rows, i64 width, const i64* index, const i64* order, const i64* starts,
                             const i64* numbers, i64 m, const double* told) {
    if (told[1] != 0) return;
    for (i64 i = this_thread(); i < numbers[m - 1] * width; i += all_threads()) {
        auto [g, d] = cell(i, width);
        i64 last = order[starts[g + 1] - 1];
        table[index[last] * width + d] = rows[last * width + d];
    }
}

// The same, all of them added one after the other.
template <class A>
__global__ void scatter_add_rows(A* table, const A* rows, i64 width, const i64* index, const i64* order,
                                 const i64* starts, const i64* numbers, i64 m, const double* told) {
    if (told[1] != 0) return;
    for (i64 i = this_thread(); i < numbers[m - 1] * width; i += all_threads()) {
        auto [g, d] = cell(i, width);
        i64 at = index[order[starts[g]]] * width + d;
        A sum = table[at];
        for (i64 p = starts[g]; p < starts[g + 1]; ++p) sum += rows[order[p] * width + d];
        table[at] = sum;
    }
}

// Sums of integers are the same in any order, so atomics will do.
template <class T>
__global__ void scatter_add_rows_fixed(i64* table, const T* rows, i64 width, const i64* index, i64 m, double scale,
                                       const double* told) {
    if (told[1] != 0) return;
    for (i64 i = this_thread(); i < m * width; i += all_threads()) {
        auto [row, d] = cell(i, width);
        atomicAdd((u64*)table + index[row] * width + d, (u64)(i64)rint((double)rows[i] * scale));
    }
}

// slots, all -1, the largest of unsigned numbers: the first position of every key.
template <class I> __global__ void mark_first(i32* slots, const I* x, i64 n, const double* told) {
    if (told[1] != 0) return;
    for (i64 i = this_thread(); i < n; i += all_threads()) atomicMin((u32*)slots + x[i], (u32)i);
}

template <class I> __global__ void is_first(i64* first, const i32* slots, const I* x, i64 n, const double* told) {
    bool wrong = told[1] != 0;
    for (i64 i = this_thread(); i < n; i += all_threads()) first[i] = !wrong && slots[x[i]] == i;
}

// numbers: the running sum of `first`; told[0] becomes the number of keys.
template <class I>
__global__ void localize(i64* keys, i32* inverse, const i32* slots, const I* x, const i64* first, const i64* numbers,
                         i64 n, double* told) {
    if (told[1] != 0) return;
    i64 count = numbers[n - 1];
    for (i64 i = this_thread(); i < n; i += all_threads()) {
        i64 at = slots[x[i]];
        inverse[i] = numbers[at] - 1;
        if (first[i]) keys[numbers[i] - 1] = x[i];
        if (i >= count) keys[i] = 0;
    }
    if (this_thread() == 0) told[0] = count;
}

template <class I> __global__ void forget(i32* slots, const I* x, i64 n, const double* told) {
    if (told[1] != 0) return;
    for (i64 i = this_thread(); i < n; i += all_threads()) slots[x[i]] = -1;
}

// From keys in their order: numbers is the running sum of heads.
__global__ void unique(i64* keys, i32* inverse, const i64* x, const i64* order, const i64* heads, const i64* numbers,
                       i64 n, double* told) {
    i64 count = numbers[n - 1];
    for (i64 p = this_thread(); p < n; p += all_threads()) {
        inverse[order[p]] = numbers[p] - 1;
        if (heads[p]) keys[numbers[p] - 1] = x[order[p]];
        if (p >= count) keys[p] = 0;
    }
    if (this_thread() == 0) told[0] = count;
}
