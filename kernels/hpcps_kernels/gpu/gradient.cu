// Linear models of dense samples: a block takes some samples, a tile at a time, so that a tile comes from memory once,
// for its scores, and from the caches when it is multiplied by the residuals.
#include "loss.cuh"

constexpr int TILE = 32, ROWS = 4, V = 4;  // samples; of a warp at a time; neighbouring features of a thread

// V numbers from x[d] on, those from x[end] on being 0: the same numbers however x lies.
template <class T, class X> __device__ __forceinline__ Few<T, V> some(const X* x, i64 d, i64 end, bool wide) {
    Few<T, V> found = {};
    if (wide) {
        auto stored = load<V>(x + d);
        for (int v = 0; v < V; ++v) found[v] = As<T, X>::number(stored[v]);
    } else {
        for (int v = 0; v < V && d + v < end; ++v) found[v] = As<T, X>::number(x[d + v]);
    }
    return found;
}

// scores (rows, classes) of a few samples and C classes, by one warp; each lane adds up every 32nd group of V features.
template <int C, class T, class X>
__device__ __forceinline__ void few_scores(T* scores, const X* samples, const T* weight, const T* bias, i64 features,
                                           i64 classes, i64 rows_left, i64 classes_left, bool wide) {
    int lane = threadIdx.x % 32;
    T sums[ROWS][C] = {};
    for (i64 d = lane * V; d < features; d += 32 * V) {
        Few<T, V> x[ROWS];
        for (int r = 0; r < ROWS; ++r) x[r] = some<T>(samples + (r < rows_left ? r : 0) * features, d, features, wide);
        for (int c = 0; c < C; ++c) {
            if (c >= classes_left) break;
            auto w = some<T>(weight + c * features, d, features, wide);
            for (int r = 0; r < ROWS; ++r)
                for (int v = 0; v < V; ++v) sums[r][c] = fma(x[r][v], w[v], sums[r][c]);
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < C; ++c) {
            if (c >= classes_left) break;
            T sum = fold_lanes(sums[r][c], 32, Plus());
            if (lane == 0 && r < rows_left) scores[r * classes + c] = sum + bias[c];
        }
}

// scores (end - begin, classes) of samples begin .. end - 1, by the block.
template <int C, class T, class X>
__device__ __forceinline__ void block_scores(T* scores, const X* samples, const T* weight, const T* bias, i64 begin,
                                             i64 end, i64 features, i64 classes) {
    bool wide = aligned(samples, weight) && features % V == 0;
    for (i64 i = begin + threadIdx.x / 32 * ROWS; i < end; i += blockDim.x / 32 * ROWS)
        for (i64 k = 0; k < classes; k += C)
            few_scores<C>(scores + i * classes + k, samples + i * features, weight + k * features, bias + k, features,
                       classes, end - i, classes - k, wide);
}

template <class T, class X, int C>
__global__ void scores(T* scores, const X* samples, const T* weight, const T* bias, i64 n, i64 features, i64 classes) {
    for (i64 tile = (i64)blockIdx.x * TILE; tile < n; tile += (i64)gridDim.x * TILE)
        block_scores<C>(scores, samples, weight, bias, tile, smaller(tile + TILE, n), features, classes);
}

// Residuals of a tile in the place of its scores; each thread adds its share of the losses to `sum`.
template <class T>
__device__ __forceinline__ bool residuals(double& sum, T* scores, const T* labels, const T* weight, i64 begin, i64 end,
                                          i64, int loss, double delta) {
    bool wrong = false;
    for (i64 i = begin + threadIdx.x; i < end; i += blockDim.x) {
        wrong |= !takes_label(loss, labels[i]);
        auto found = loss_of(loss, scores[i], labels[i], delta);
        T w = weight ? weight[i] : T(1);
        sum += found.loss * w;
        scores[i] = (T)found.residual * w;
    }
    return wrong;
}
template <class T>
__device__ __forceinline__ bool residuals(double& sum, T* scores, const i64* labels, const T* weight, i64 begin,
                                          i64 end, i64 classes, int, double) {
    bool wrong = false;
    for (i64 i = begin + threadIdx.x / 32; i < end; i += blockDim.x / 32) {
        bool in_range = labels[i] >= 0 && labels[i] < classes;
        T w = weight ? weight[i] : T(1);
        double loss = softmax_sample(scores + i * classes, classes, in_range ? labels[i] : 0, w, 32, true);
        if (threadIdx.x % 32 == 0) sum += loss * w;
        wrong |= !in_range;
    }
    return wrong;
}

// gradient (classes, features) += residual.T @ samples over a tile: a thread for V features, some classes at a time.
template <int C, class T, class X>
__device__ __forceinline__ void add_gradient(T* gradient, const T* residual, const X* samples, i64 begin, i64 end,
                                             i64 features, i64 classes) {
    bool wide = aligned(samples) && features % V == 0;
    for (i64 d = (i64)threadIdx.x * V; d < features; d += blockDim.x * V)
        for (i64 k = 0; k < classes; k += C) {
            T sums[C][V] = {};
            for (i64 i = begin; i < end; ++i) {
                auto x = some<T>(samples + i * features, d, features, wide);
                for (int c = 0; c < C; ++c) {
                    if (c >= classes - k) break;
                    T r = residual[i * classes + k + c];
                    for (int v = 0; v < V; ++v) sums[c][v] = fma(r, x[v], sums[c][v]);
                }
            }
            for (int c = 0; c < C; ++c)
                for (int v = 0; v < V; ++v)
                    if (c < classes - k && d + v < features) gradient[(k + c) * features + d + v] += sums[c][v];
        }
}

// Block b: the loss and gradient of samples bounds[b] .. bounds[b + 1] - 1. gradients (blocks, classes, features), biases
// (blocks, classes), losses (blocks,); residual (n, classes) is scratch.
template <int C, class T, class X, class L>
__device__ __forceinline__ void linear(T* gradients, T* biases, double* losses, double* told, T* residual, const X* samples,
                       const L* labels, const T* sample_weight, i64 weighted, const T* weight, const T* bias,
                       const i64* bounds, i64 features, i64 classes, i64 loss, double delta) {
    i64 begin = bounds[blockIdx.x], end = bounds[blockIdx.x + 1];
    T* gradient = gradients + blockIdx.x * classes * features;
    T* bias_gradient = biases + blockIdx.x * classes;
    for (i64 i = threadIdx.x; i < classes * features; i += blockDim.x) gradient[i] = 0;
    for (i64 k = threadIdx.x; k < classes; k += blockDim.x) bias_gradient[k] = 0;
    double sum = 0;
    bool wrong = false;
    for (i64 tile = begin; tile < end; tile += TILE) {
        i64 tile_end = smaller(tile + TILE, end);
        block_scores<C>(residual, samples, weight, bias, tile, tile_end, features, classes);
        __syncthreads();
        wrong |= residuals(sum, residual, labels, weighted ? sample_weight : nullptr, tile, tile_end, classes, loss, delta);
        __syncthreads();
        add_gradient<C>(gradient, residual, samples, tile, tile_end, features, classes);
        for (i64 k = threadIdx.x; k < classes; k += blockDim.x) {
            T added = 0;
            for (i64 i = tile; i < tile_end; ++i) added += residual[i * classes + k];
            bias_gradient[k] += added;
        }
    }
    if (wrong) told[1] = 1;
    sum = fold_block(sum, 0., Plus());
    if (threadIdx.x == 0) losses[blockIdx.x] = sum;
}

#define LINEAR(name, C, L) \
    template <class T, class X> \
    __global__ void name(T* gradients, T* biases, double* losses, double* told, T* residual, const X* samples, \
                         const L* labels, const T* sample_weight, i64 weighted, const T* weight, const T* bias, \
                         const i64* bounds, i64 features, i64 classes, i64 loss, double delta) { \
        linear<C>(gradients, biases, losses, told, residual, samples, labels, sample_weight, weighted, weight, \
                        bias, bounds, features, classes, loss, delta); \
    }
LINEAR(point_linear, 1, T)
LINEAR(softmax_linear, 4, i64)
