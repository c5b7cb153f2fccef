// Rows of normal numbers by their keys; the reference says how.
#include "draw.cuh"

// step: the scale over the drawn integers' deviation.
template <class T>
__global__ void init_rows(T* out, const i64* keys, i64 k, i64 width, i64 seed, i64 zeros, double step) {
    u64 begin = mixed((u64)seed + GAMMA);
    for (i64 i = this_thread(); i < k * width; i += all_threads()) {
        auto [row, column] = cell(i, width);
        u64 drawn = mixed(mixed((u64)keys[row] ^ begin) + GAMMA * (u64)(column + 1));
        i64 ones = __popcll(drawn >> 32), a = drawn & 0xffff, b = drawn >> 16 & 0xffff;
        i64 normal = (ones - 16) * 65536 + a - b;
        out[i] = column < zeros || step == 0 ? T(0) : (T)((double)normal * step);
    }
}
