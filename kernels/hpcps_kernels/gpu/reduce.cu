// Sums, products and maxima of flat buffers.
#include "columns.cuh"

template <class A> __global__ void add_into(A* out, const A* x, i64 n) {
    each<16 / sizeof(A)>(n, aligned(out, x), [&](i64 i, auto width) {
        WIDTH(width);
        auto sum = load<W>(out + i), more = load<W>(x + i);
        for (int k = 0; k < W; ++k) sum[k] += more[k];
        store(out + i, sum);
    });
}

template <class T> __global__ void axpy(T* out, const T* x, i64 n, double a) {
    each<16 / sizeof(T)>(n, aligned(out, x), [&](i64 i, auto width) {
        WIDTH(width);
        auto sum = load<W>(out + i), more = load<W>(x + i);
        for (int k = 0; k < W; ++k) sum[k] += T(a) * more[k];
        store(out + i, sum);
    });
}

// out = xs[0] + xs[1] + ..., rows of n, in this order.
template <class A> __global__ void sum_into(A* out, const A* xs, i64 rows, i64 n) {
    bool wide = aligned(out, xs) && n % (16 / sizeof(A)) == 0;
    each<16 / sizeof(A)>(n, wide, [&](i64 i, auto width) {
        WIDTH(width);
        Few<A, W> sum = {};
        if (rows) sum = load<W>(xs + i);
        for (i64 p = 1; p < rows; ++p) {
            auto more = load<W>(xs + p * n + i);
            for (int k = 0; k < W; ++k) sum[k] += more[k];
        }
        store(out + i, sum);
    });
}

// A stack machine a column: row rows[p] of xs is pushed (row p where they are not numbered), then adds[p] times the two
// uppermost become their sum. What is left goes to rows of out, `pitch` numbers apart. The uppermost is in a register,
// those below in `stack`, as deep as the program needs.
template <class A>
__global__ void sum_tree(A* out, i64 pitch, A* stack, const A* xs, i64 n, const i64* rows, i64 numbered,
                         const i64* adds, i64 count) {
    for (i64 i = this_thread(); i < n; i += all_threads()) {
        A top = 0;
        i64 below = -1;  // entries in `stack`
        for (i64 p = 0; p < count; ++p) {
            if (below >= 0) stack[below * n + i] = top;
            ++below;
            top = xs[(numbered ? rows[p] : p) * n + i];
            for (i64 a = 0; a < adds[p]; ++a) top = stack[--below * n + i] + top;
        }
        for (i64 m = 0; m < below; ++m) out[m * pitch + i] = stack[m * n + i];
        if (below >= 0) out[below * pitch + i] = top;
    }
}

template <class T> __global__ void add_fixed(i64* out, const T* x, i64 n, double scale) {
    each<2>(n, aligned(out, x), [&](i64 i, auto width) {
        WIDTH(width);
        auto sum = load<W>(out + i);
        auto more = load<W>(x + i);
        for (int k = 0; k < W; ++k) sum[k] += (i64)rint((double)more[k] * scale);
        store(out + i, sum);
    });
}

template <class T> __global__ void from_fixed(T* out, const i64* x, i64 n, double scale) {
    each<2>(n, aligned(out, x), [&](i64 i, auto width) {
        WIDTH(width);
        auto fixed = load<W>(x + i);
        Few<T, W> made;
        for (int k = 0; k < W; ++k) made[k] = (T)((double)fixed[k] * scale);
        store(out + i, made);
    });
}

// A block's share of a sum or a maximum: neighbouring elements for neighbouring threads, blocks one behind the other.
// Shares do not depend on the device, so neither does the order.
template <class T, class R, class Term, class Fold>
__device__ __forceinline__ void fold_share(R* parts, const T* x, const T* y, i64 n, Term term, Fold fold) {
    constexpr int w = 16 / sizeof(T);
    bool wide = aligned(x, y);
    R found[w] = {};
    for (i64 i = this_thread() * w; i < n; i += all_threads() * w) {
        if (wide && i + w <= n) {
            auto a = load<w>(x + i), b = load<w>(y + i);
            for (int k = 0; k < w; ++k) found[k] = fold(found[k], term(a[k], b[k]));
        } else {
            for (int k = 0; k < w && i + k < n; ++k) found[k] = fold(found[k], term(x[i + k], y[i + k]));
        }
    }
    R all = found[0];
    for (int k = 1; k < w; ++k) all = fold(all, found[k]);
    all = fold_block(all, R(0), fold);
    if (threadIdx.x == 0) parts[blockIdx.x] = all;
}

struct Product {
    template <class T> __device__ __forceinline__ double operator()(T a, T b) const { return (double)a * (double)b; }
};
template <class T> __global__ void dot(double* parts, const T* x, const T* y, i64 n) {
    fold_share(parts, x, y, n, Product(), Plus());
}

struct Size {
    template <class T> __device__ __forceinline__ double operator()(T a, T) const { return (double)size_of(a); }
};
template <class T> __global__ void max_abs(double* parts, const T* x, i64 n) {
    fold_share(parts, x, x, n, Size(), Largest());
}

struct NotFinite {
    template <class T> __device__ __forceinline__ double operator()(T a, T) const { return a - a == 0 ? 0 : 1; }
};
template <class T> __global__ void count_not_finite(double* parts, const T* x, i64 n) {
    fold_share(parts, x, x, n, NotFinite(), Plus());
}

// One block: told[0] is the sum, or the maximum, of the blocks' shares.
template <class Fold> __global__ void fold_parts(double* told, const double* parts, i64 count) {
    double found = 0;
    for (i64 i = threadIdx.x; i < count; i += blockDim.x) found = Fold()(found, parts[i]);
    found = fold_block(found, 0., Fold());
    if (threadIdx.x == 0) told[0] = found;
}

// out (chunks, n): the column sums of each chunk of rows.
template <class T> __global__ void sum_columns(T* out, const T* xs, i64 rows, i64 n, i64 lanes, i64 chunk) {
    column_sums(out, rows, n, lanes, chunk, [&](i64 row, i64 column) { return xs[row * n + column]; });
}
