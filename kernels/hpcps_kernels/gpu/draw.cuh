// SplitMix64.
#pragma once
#include "numbers.cuh"

constexpr u64 GAMMA = 0x9E3779B97F4A7C15;

__device__ __forceinline__ u64 mixed(u64 z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}
