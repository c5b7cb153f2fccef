// Losses of scores and their residuals, in double.
#pragma once
#include "numbers.cuh"

enum Loss { SQUARED, HUBER, LOGISTIC, HINGE, SQUARED_HINGE, POISSON };

struct LossAndResidual {
    double loss, residual;
};

__device__ __forceinline__ bool takes_label(int loss, double y) {
    if (loss == POISSON) return y >= 0;
    return loss == SQUARED || loss == HUBER || y == 0 || y == 1;
}

__device__ __forceinline__ LossAndResidual loss_of(int loss, double s, double y, double delta) {
    double r = s - y, z = 2 * y - 1, margin = 1 - z * s;
    if (margin < 0) margin = 0;  // a nan stays
    switch (loss) {
        case SQUARED: return {0.5 * (r * r), r};
        case HUBER: {
            double size = size_of(r);
            if (size <= delta) return {0.5 * (r * r), r};
            return {delta * (size - 0.5 * delta), is_nan(r) ? r : r < 0 ? -delta : delta};
        }
        case LOGISTIC: {
            double small = exp(-size_of(s));
            return {(s < 0 ? 0 : s) - y * s + log1p(small), (s >= 0 ? 1 : small) / (1 + small) - y};
        }
        case HINGE: return {margin, margin > 0 ? -z : margin};
        case SQUARED_HINGE: return {margin * margin, -2 * z * margin};
        default: {
            double rate = exp(s);
            return {rate - y * s, rate - y};
        }
    }
}

// One sample of K classes by `lanes` neighbouring lanes. Every lane has the loss, without the sample's weight; residuals,
// with it, overwrite the scores if they are wanted. The label must be below K.
template <class T>
__device__ __forceinline__ double softmax_sample(T* scores, i64 classes, i64 label, T weight, int lanes, bool residuals) {
    int lane = threadIdx.x % lanes;
    T largest = scores[0];
    for (i64 k = lane; k < classes; k += lanes) largest = Largest()(largest, scores[k]);
    largest = fold_lanes(largest, lanes, Largest());
    double odds = 0;
    for (i64 k = lane; k < classes; k += lanes) odds += exp((double)scores[k] - (double)largest);
    odds = fold_lanes(odds, lanes, Plus());
    double loss = log(odds) - ((double)scores[label] - (double)largest);
    __syncwarp();
    if (residuals)
        for (i64 k = lane; k < classes; k += lanes)
            scores[k] = (T)(exp((double)scores[k] - (double)largest) / odds - (k == label)) * weight;
    return loss;
}
