// Optimiser steps: one pass, every array read once and written once.
#include "numbers.cuh"

template <class T> struct Numbers {
    T scale, l1, l2, a, b, c, d, e, f, g, h;
};

// An optimiser's arithmetic for one element: parameter, its states, gradient.
struct Sgd {
    static constexpr int states = 0;
    template <class T> static __device__ __forceinline__ void step(T& p, T*, T g, const Numbers<T>& n) { p -= n.a * g; }
};
struct Momentum {
    static constexpr int states = 1;
    template <class T> static __device__ __forceinline__ void step(T& p, T* s, T g, const Numbers<T>& n) {
        s[0] = n.b * s[0] + g;
        p -= n.a * s[0];
    }
};
struct Nesterov {
    static constexpr int states = 1;
    template <class T> static __device__ __forceinline__ void step(T& p, T* s, T g, const Numbers<T>& n) {
        s[0] = n.b * s[0] + g;
        p -= n.a * (g + n.b * s[0]);
    }
};
struct Adagrad {
    static constexpr int states = 1;
    template <class T> static __device__ __forceinline__ void step(T& p, T* s, T g, const Numbers<T>& n) {
        s[0] += g * g;
        p -= n.a * g / (sqrt(s[0]) + n.b);
    }
};
struct Rmsprop {
    static constexpr int states = 1;
    template <class T> static __device__ __forceinline__ void step(T& p, T* s, T g, const Numbers<T>& n) {
        s[0] = n.b * s[0] + n.c * (g * g);
        p -= n.a * g / (sqrt(s[0]) + n.d);
    }
};
struct Adam {  // a: corrected rate; b: root of the second correction; c: epsilon; d, e: of first; f, g: of second
    static constexpr int states = 2;
    template <class T> static __device__ __forceinline__ void step(T& p, T* s, T g, const Numbers<T>& n) {
        s[0] = n.d * s[0] + n.e * g;
        s[1] = n.f * s[1] + n.g * (g * g);
        p -= n.a * s[0] / (sqrt(s[1]) / n.b + n.c);
    }
};
struct Adamw {  // h: rate times weight decay
    static constexpr int states = 2;
    template <class T> static __device__ __forceinline__ void step(T& p, T* s, T g, const Numbers<T>& n) {
        p -= n.h * p;
        Adam::step(p, s, g, n);
    }
};
struct Ftrl {  // a: 1 / alpha; b: beta; c, d: l1 and l2 of the closed form
    static constexpr int states = 2;
    template <class T> static __device__ __forceinline__ void step(T& p, T* s, T g, const Numbers<T>& n) {
        T total = s[1] + g * g, root = sqrt(total);
        T z = s[0] + (g - (root - sqrt(s[1])) * n.a * p);
        T nearer = z - (z > 0 ? n.c : -n.c);
        p = (z < 0 ? -z : z) <= n.c ? T(0) : -nearer / ((n.b + root) * n.a + n.d);
        s[0] = z;
        s[1] = total;
    }
};

// g + l2 * p + l1 * sign(p); g itself, even -0, without penalties.
template <class T> __device__ __forceinline__ T penalised(T g, T p, const Numbers<T>& n) {
    if (n.l1 == 0 && n.l2 == 0) return g;
    T sign = T(p > 0) - T(p < 0);
    return g + (n.l2 * p + n.l1 * sign);
}

template <int W, class T, class Rule>
__device__ __forceinline__ void step(T* p, T* s, T* t, const T* g, const Numbers<T>& numbers) {
    auto params = load<W>(p), gradient = load<W>(g);
    Few<T, W> one, two;
    if constexpr (Rule::states > 0) one = load<W>(s);
    if constexpr (Rule::states > 1) two = load<W>(t);
    for (int k = 0; k < W; ++k) {
        T states[2] = {one[k], two[k]};
        Rule::step(params[k], states, penalised(gradient[k] * numbers.scale, params[k], numbers), numbers);
        one[k] = states[0];
        two[k] = states[1];
    }
    store(p, params);
    if constexpr (Rule::states > 0) store(s, one);
    if constexpr (Rule::states > 1) store(t, two);
}

#define NUMBERS double scale, double l1, double l2, double a, double b, double c, double d, double e, double f, double g, double h
#define ROUNDED \
    const Numbers<T> numbers = {T(scale), T(l1), T(l2), T(a), T(b), T(c), T(d), T(e), T(f), T(g), T(h)}

// Over flat buffers; s and t are not looked at where the rule has no such state.
template <class T, class Rule>
__global__ void dense(T* p, T* s, T* t, const T* gradient, i64 n, NUMBERS) {
    ROUNDED;
    bool wide = aligned(p, gradient) && (Rule::states < 1 || aligned(s)) && (Rule::states < 2 || aligned(t));
    each<16 / sizeof(T)>(n, wide, [&](i64 i, auto width) {
        WIDTH(width);
        step<W, T, Rule>(p + i, s + i, t + i, gradient + i, numbers);
    });
}

// Row index[i] of tables whose rows are `pitch` apart, with row i of the gradient. Does nothing if told[1] is not 0.
template <class T, class Rule>
__global__ void rows(T* p, T* s, T* t, i64 pitch, const T* gradient, const i64* index, i64 k, i64 width,
                     const double* told, NUMBERS) {
    if (told[1] != 0) return;
    ROUNDED;
    for (i64 i = this_thread(); i < k * width; i += all_threads()) {
        auto [row, column] = cell(i, width);
        i64 at = index[row] * pitch + column;
        step<1, T, Rule>(p + at, s + at, t + at, gradient + i, numbers);
    }
}
