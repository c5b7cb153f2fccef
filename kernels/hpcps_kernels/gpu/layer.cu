// What follows a layer's matrix product, forward and backward.
#include "columns.cuh"

enum Activation { IDENTITY, RELU, TANH, GELU };

// P(X <= z) of a standard normal X.
template <class T> __device__ __forceinline__ T normal(T z) { return T(0.5) * (T(1) + erf(z * T(0.70710678118654752))); }

template <class T> __device__ __forceinline__ T activated(int activation, T z) {
    switch (activation) {
        case RELU: return z <= 0 ? T(0) : z;
        case TANH: return tanh(z);
        case GELU: return z * normal(z);
        default: return z;
    }
}

// The activation's derivative at z, where it gave `out`.
template <class T> __device__ __forceinline__ T slope(int activation, T z, T out) {
    switch (activation) {
        case RELU: return is_nan(z) ? z : T(z > 0);
        case TANH: return T(1) - out * out;
        case GELU: return normal(z) + z * exp(T(-0.5) * z * z) * T(0.39894228040143268);
        default: return T(1);
    }
}

template <class T> __global__ void bias_activation(T* out, T* z, const T* bias, i64 n, i64 units, i64 activation) {
    constexpr int w = 16 / sizeof(T);
    each<w>(n * units, aligned(out, z, bias) && units % w == 0, [&](i64 i, auto width) {
        WIDTH(width);
        auto sum = load<W>(z + i), added = load<W>(bias + cell(i, units).column);
        Few<T, W> made;
        for (int k = 0; k < W; ++k) {
            sum[k] += added[k];
            made[k] = activated(activation, sum[k]);
        }
        store(z + i, sum);
        store(out + i, made);
    });
}

// delta *= f'(z), and its column sums by chunks of rows, in one pass.
template <class T>
__global__ void activation_gradient(T* delta, T* sums, const T* z, const T* out, i64 n, i64 units, i64 lanes, i64 chunk,
                                    i64 activation) {
    column_sums(sums, n, units, lanes, chunk, [&](i64 row, i64 column) {
        i64 i = row * units + column;
        if (activation != IDENTITY) delta[i] *= slope<T>(activation, z[i], out[i]);
        return delta[i];
    });
}
