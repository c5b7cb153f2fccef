// Losses of scores, summed over the samples, and their residuals.
#include "loss.cuh"

// Shares of the weighted loss; residuals overwrite the scores if they are wanted. No weights: weight is null.
template <class T>
__global__ void point(double* parts, double* told, T* scores, const T* labels, const T* weight, i64 weighted, i64 n,
                      i64 loss, double delta, i64 residuals) {
    double sum = 0;
    bool wrong = false;
    for (i64 i = this_thread(); i < n; i += all_threads()) {
        wrong |= !takes_label(loss, labels[i]);
        auto found = loss_of(loss, scores[i], labels[i], delta);
        T w = weighted ? weight[i] : T(1);
        sum += found.loss * w;
        if (residuals) scores[i] = (T)found.residual * w;
    }
    if (wrong) told[1] = 1;
    sum = fold_block(sum, 0., Plus());
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// The same of K classes, a sample by `lanes` lanes.
template <class T>
__global__ void softmax(double* parts, double* told, T* scores, const i64* labels, const T* weight, i64 weighted, i64 n,
                        i64 classes, i64 lanes, i64 residuals) {
    double sum = 0;
    bool wrong = false;
    i64 first = this_thread() / lanes, step = all_threads() / lanes;
    for (i64 i = first; i - first < n; i += step) {  // whole warps, so that all lanes take part
        bool is_one = i < n, in_range = is_one && labels[i] >= 0 && labels[i] < classes;
        wrong |= is_one && !in_range;
        i64 at = is_one ? i : n - 1;
        T w = weighted ? weight[at] : T(1);
        double loss = softmax_sample(scores + at * classes, classes, in_range ? labels[at] : 0, w, lanes,
                                     residuals && in_range);
        if (in_range && threadIdx.x % lanes == 0) sum += loss * w;
    }
    if (wrong) told[1] = 1;
    sum = fold_block(sum, 0., Plus());
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}
