// Fewer bytes for the wire: half precision, 8 bits, the largest elements.
#include "draw.cuh"

struct Bfloat16 {
    static __device__ __forceinline__ u16 code(float x) {
        u32 bits = bits_of(x);
        return is_nan(x) ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }
    static __device__ __forceinline__ float number(u16 x) { return of_bits((u32)x << 16); }
};
struct Float16 {
    static __device__ __forceinline__ u16 code(float x) { return float_to_half(x); }
    static __device__ __forceinline__ float number(u16 x) { return half_to_float(x); }
};

template <class Half> __global__ void narrow(u16* out, const float* x, i64 n) {
    each<8>(n, aligned(out, x), [&](i64 i, auto width) {
        WIDTH(width);
        auto wide = load<W>(x + i);
        Few<u16, W> made;
        for (int k = 0; k < W; ++k) made[k] = Half::code(wide[k]);
        store(out + i, made);
    });
}

template <class Half> __global__ void widen(float* out, const u16* x, i64 n) {
    each<8>(n, aligned(out, x), [&](i64 i, auto width) {
        WIDTH(width);
        auto codes = load<W>(x + i);
        Few<float, W> made;
        for (int k = 0; k < W; ++k) made[k] = Half::number(codes[k]);
        store(out + i, made);
    });
}

// A multiple of 2^-24 in [0, 1) for the element that is the at-th of all.
__device__ __forceinline__ float uniform(u64 start, u64 at) {
    u64 word = mixed(start + (at >> 1) * GAMMA);
    u32 half = at & 1 ? word >> 32 : word;
    return (float)(half >> 8) * 5.9604644775390625e-8f;
}

// A warp for a block of elements: its largest magnitude, then its codes. With feedback x is added to the residual, which is
// coded in its place, and keeps what the codes leave out.
__global__ void quantize_int8(i8* codes, float* scales, float* residual, i64 feedback, const float* x, i64 n, i64 block,
                              i64 blocks, i64 stochastic, i64 seed, i64 counter, double* told) {
    u64 start = mixed((u64)seed);
    for (i64 b = this_thread() / 32; b < blocks; b += all_threads() / 32) {
        i64 begin = b * block + threadIdx.x % 32, end = smaller((b + 1) * block, n);
        float largest = 0;
        for (i64 i = begin; i < end; i += 32) {
            float value = x[i];
            if (feedback) residual[i] = value = residual[i] + value;
            if (value - value != 0) told[1] = 1;
            largest = Largest()(largest, size_of(value));
        }
        float scale = fold_lanes(largest, 32, Largest()) / 127.f;
        if (threadIdx.x % 32 == 0) scales[b] = scale;
        for (i64 i = begin; i < end; i += 32) {
            float value = feedback ? residual[i] : x[i], code = 0;
            if (scale != 0) {
                float ratio = value / scale, below = floor(ratio);
                code = stochastic ? below + (uniform(start, (u64)counter + i) < ratio - below) : rint(ratio);
                code = code < -127.f ? -127.f : code > 127.f ? 127.f : code;
            }
            codes[i] = (i8)code;
            if (feedback) residual[i] = value - code * scale;
        }
    }
}

// out = codes * scale, or that added to out.
__global__ void dequantize_int8(float* out, const i8* codes, const float* scales, i64 n, i64 block, i64 adds) {
    each<4>(n, aligned(out, codes) && block % 4 == 0, [&](i64 i, auto width) {
        WIDTH(width);
        auto code = load<W>(codes + i);
        Few<float, W> made = {};
        if (adds) made = load<W>(out + i);
        float scale = scales[cell(i, block).row];
        for (int k = 0; k < W; ++k) made[k] = adds ? made[k] + (float)code[k] * scale : (float)code[k] * scale;
        store(out + i, made);
    });
}

// residual += gradient; keys that rise as magnitudes fall. told[1] becomes 1 where the sum is no number.
template <class T, class K>
__device__ __forceinline__ void add_and_key(K* keys, T* residual, const T* gradient, i64 n, double* told) {
    for (i64 i = this_thread(); i < n; i += all_threads()) {
        T sum = residual[i] + gradient[i];
        residual[i] = sum;
        if (is_nan(sum)) told[1] = 1;
        if constexpr (sizeof(T) == 4) keys[i] = ~(__float_as_uint(sum) & 0x7fffffff);
        else keys[i] = ~((u64)__double_as_longlong(sum) & 0x7fffffffffffffff);
    }
}
__global__ void add_and_key_32(u32* keys, float* residual, const float* gradient, i64 n, double* told) {
    add_and_key(keys, residual, gradient, n, told);
}
__global__ void add_and_key_64(u64* keys, double* residual, const double* gradient, i64 n, double* told) {
    add_and_key(keys, residual, gradient, n, told);
}

__global__ void mark(i64* taken, const i64* order, i64 k) {
    for (i64 p = this_thread(); p < k; p += all_threads()) taken[order[p]] = 1;
}

// numbers: the running sum of `taken`.
template <class T>
__global__ void take(i64* index, T* values, T* residual, const i64* taken, const i64* numbers, i64 n,
                     const double* told) {
    if (told[1] != 0) return;
    for (i64 i = this_thread(); i < n; i += all_threads())
        if (taken[i]) {
            index[numbers[i] - 1] = i;
            values[numbers[i] - 1] = residual[i];
            residual[i] = 0;
        }
}
