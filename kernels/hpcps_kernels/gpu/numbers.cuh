// What all kernels share: types, numbering of threads, vectors of 16 bytes, sums over a block.
#pragma once

typedef signed char i8;
typedef short i16;
typedef int i32;
typedef long long i64;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned u32;
typedef unsigned long long u64;

#define EVERY_LANE 0xffffffffu

__device__ __forceinline__ i64 this_thread() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ i64 all_threads() { return (i64)gridDim.x * blockDim.x; }
__device__ __forceinline__ i64 smaller(i64 a, i64 b) { return a < b ? a : b; }

// Where number i of rows so wide is; divides 32 bits where they will do, which is several times as fast.
struct Cell {
    i64 row, column;
};
__device__ __forceinline__ Cell cell(i64 i, i64 width) {
    i64 row = (u64)(i | width) >> 32 ? i / width : (i64)((u32)i / (u32)width);
    return {row, i - row * width};
}

// W neighbours, moved in accesses of 16 bytes where they are so many.
template <class T, int W> struct alignas(sizeof(T) * W < 16 ? sizeof(T) * W : 16) Few {
    T v[W];
    __device__ __forceinline__ T& operator[](int k) { return v[k]; }
    __device__ __forceinline__ const T& operator[](int k) const { return v[k]; }
};
template <int W, class T> __device__ __forceinline__ Few<T, W> load(const T* p) {
    return *reinterpret_cast<const Few<T, W>*>(p);
}
template <class T, int W> __device__ __forceinline__ void store(T* p, Few<T, W> x) {
    *reinterpret_cast<Few<T, W>*>(p) = x;
}
template <class... P> __device__ __forceinline__ bool aligned(P... p) { return ((((u64)p) | ...) & 15) == 0; }

template <int W> struct Width {
    static constexpr int value = W;
};

// body(i, width) for all of 0 .. n - 1, W at a time where the arrays allow it; a width is a Width.
template <int W, class Body> __device__ __forceinline__ void each(i64 n, bool wide, Body body) {
    i64 whole = wide ? n / W * W : 0;
    for (i64 i = this_thread() * W; i < whole; i += all_threads() * W) body(i, Width<W>());
    for (i64 i = whole + this_thread(); i < n; i += all_threads()) body(i, Width<1>());
}
#define WIDTH(width) constexpr int W = decltype(width)::value

// IEEE half precision, to float exactly and from float rounded to nearest, half to even; a nan is made quiet.
struct f16 {
    u16 bits;
};
__device__ __forceinline__ u32 bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float of_bits(u32 x) { return __uint_as_float(x); }
__device__ __forceinline__ float half_to_float(u16 h) {
    u32 sign = (u32)(h & 0x8000) << 16, rest = (u32)(h & 0x7fff) << 13;
    if (rest >= 0x7c00u << 13) return of_bits(sign | 0x7f800000 | (rest & 0x7fffff) | (rest & 0x7fffff ? 0x400000 : 0));
    return of_bits(sign | bits_of(of_bits(rest) * of_bits(0x77800000)));  // times 2^112, exact also below 2^-14
}
__device__ __forceinline__ u16 float_to_half(float x) {
    u32 bits = bits_of(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return (u16)(sign | 0x7e00 | (size >> 13 & 0x3ff));
    if (size >= 0x477ff000) return (u16)(sign | 0x7c00);  // 65520 and more
    if (size < 0x38800000)                               // below 2^-14: steps of 2^-24, those of floats near 0.5
        return (u16)(sign | (bits_of(of_bits(size) + 0.5f) - 0x3f000000));
    return (u16)(sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
}

// What arrays hold, in the dtype that is computed in.
template <class T, class S> struct As {
    static __device__ __forceinline__ T number(S x) { return (T)x; }
};
template <class T> struct As<T, f16> {
    static __device__ __forceinline__ T number(f16 x) { return (T)half_to_float(x.bits); }
};

template <class T> __device__ __forceinline__ bool is_nan(T x) { return x != x; }
template <class T> __device__ __forceinline__ T size_of(T x) { return x < 0 ? -x : x == 0 ? 0 : x; }

struct Plus {
    template <class T> __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};
struct Largest {  // a nan wins
    template <class T> __device__ __forceinline__ T operator()(T a, T b) const { return a > b || is_nan(a) ? a : b; }
};

// Over `lanes` neighbouring lanes, a power of two, in an order that is always the same; every lane has the result.
template <class T, class Fold> __device__ __forceinline__ T fold_lanes(T x, int lanes, Fold fold) {
    for (int d = lanes / 2; d; d /= 2) x = fold(x, __shfl_xor_sync(EVERY_LANE, x, d));
    return x;
}

// Over the block, whose threads must be whole warps; thread 0 has the result. The barrier in front lets folds follow each other.
template <class T, class Fold> __device__ T fold_block(T x, T none, Fold fold) {
    __shared__ T of_warps[32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    x = fold_lanes(x, 32, fold);
    __syncthreads();
    if (lane == 0) of_warps[warp] = x;
    __syncthreads();
    if (warp == 0) x = fold_lanes(lane < blockDim.x / 32 ? of_warps[lane] : none, 32, fold);
    return x;
}
