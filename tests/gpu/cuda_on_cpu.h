// Runs a CUDA kernel's source on one CPU thread: blocks one after the other, a block's threads as fibers, both in a
// random order that a seed gives. Threads go on until they finish or wait, for their block or their warp, so that what
// lacks a barrier reads what is not there yet.
#pragma once
#include <math.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct Place {
    unsigned x;
};
static Place threadIdx, blockIdx, blockDim, gridDim;

namespace oncpu {

constexpr size_t STACK = 1 << 16;

// A context is where its registers were pushed.
void switch_to(void** from, void* to) asm("oncpu_switch_to");
#if defined(__x86_64__)
asm(R"(
oncpu_switch_to:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
)");
static void* begin_at(char* stack, void (*function)()) {
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + STACK) & ~uintptr_t(15));
    top[-2] = reinterpret_cast<void*>(function);
    std::fill(top - 8, top - 2, nullptr);
    return top - 8;
}
#elif defined(__aarch64__)
asm(R"(
oncpu_switch_to:
    stp x19, x20, [sp, -160]!; stp x21, x22, [sp, 16]; stp x23, x24, [sp, 32]; stp x25, x26, [sp, 48]
    stp x27, x28, [sp, 64]; stp x29, x30, [sp, 80]; stp d8, d9, [sp, 96]; stp d10, d11, [sp, 112]
    stp d12, d13, [sp, 128]; stp d14, d15, [sp, 144]
    mov x9, sp; str x9, [x0]; mov sp, x1
    ldp d14, d15, [sp, 144]; ldp d12, d13, [sp, 128]; ldp d10, d11, [sp, 112]; ldp d8, d9, [sp, 96]
    ldp x29, x30, [sp, 80]; ldp x27, x28, [sp, 64]; ldp x25, x26, [sp, 48]; ldp x23, x24, [sp, 32]
    ldp x21, x22, [sp, 16]; ldp x19, x20, [sp], 160
    ret
)");
static void* begin_at(char* stack, void (*function)()) {
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + STACK) & ~uintptr_t(15));
    std::fill(top - 20, top, nullptr);
    top[-20 + 11] = reinterpret_cast<void*>(function);
    return top - 20;
}
#endif

struct Fiber {
    std::unique_ptr<char[]> stack{new char[STACK]};
    void* at;
    bool done;
};
struct Barrier {
    unsigned members = 0, arrived = 0, round = 0;
    bool complete() {
        if (!members || arrived < members) return false;
        arrived = 0;
        ++round;
        return true;
    }
};

static std::vector<Fiber> fibers;
static std::vector<Barrier> warps;
static std::vector<uint64_t> lanes;
static Barrier block;
static void* scheduler;
static unsigned self, steps;  // steps: barriers passed and threads finished
static std::function<void()> body;

static void wait(Barrier& barrier) {
    unsigned round = barrier.round, me = self;
    ++barrier.arrived;
    while (barrier.round == round && !barrier.complete()) switch_to(&fibers[me].at, scheduler);
    ++steps;
    threadIdx.x = me;
}

static void enter() {
    body();
    fibers[self].done = true;
    --block.members;
    --warps[self / 32].members;
    ++steps;
    switch_to(&fibers[self].at, scheduler);
}

// 0, or 1 where threads wait for others that never come.
static int run_block(unsigned threads, std::mt19937& random) {
    std::vector<unsigned> order(threads);
    std::iota(order.begin(), order.end(), 0u);
    block = Barrier{threads};
    warps.assign((threads + 31) / 32, Barrier{});
    for (unsigned t = 0; t < threads; ++t) {
        ++warps[t / 32].members;
        fibers[t].done = false;
        fibers[t].at = begin_at(fibers[t].stack.get(), enter);
    }
    while (block.members) {
        unsigned before = steps;
        std::shuffle(order.begin(), order.end(), random);
        for (unsigned t : order)
            if (!fibers[t].done) {
                self = threadIdx.x = t;
                switch_to(&scheduler, fibers[t].at);
            }
        if (steps == before) return 1;
    }
    return 0;
}

static int launch(unsigned blocks, unsigned threads, unsigned seed, std::function<void()> kernel) {
    std::mt19937 random(seed);
    std::vector<unsigned> order(blocks);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), random);
    gridDim.x = blocks;
    blockDim.x = threads;
    body = kernel;
    if (fibers.size() < threads) fibers.resize(threads);
    lanes.assign((threads + 31) / 32 * 32, 0);
    for (unsigned b : order) {
        blockIdx.x = b;
        if (run_block(threads, random)) return 1;
    }
    return 0;
}

// All lanes of a warp that have not finished take part.
template <class T> T exchange(T mine, unsigned from) {
    static_assert(sizeof(T) <= 8);
    unsigned first = self / 32 * 32;
    memcpy(&lanes[self], &mine, sizeof(T));
    wait(warps[first / 32]);
    T theirs;
    memcpy(&theirs, &lanes[first + from % 32], sizeof(T));
    wait(warps[first / 32]);
    return theirs;
}

template <class To, class From> To same_bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    memcpy(&y, &x, sizeof(x));
    return y;
}

}  // namespace oncpu

static inline void __syncthreads() { oncpu::wait(oncpu::block); }
static inline void __syncwarp(unsigned = ~0u) { oncpu::wait(oncpu::warps[oncpu::self / 32]); }
template <class T> T __shfl_xor_sync(unsigned, T x, unsigned by) { return oncpu::exchange(x, (oncpu::self % 32) ^ by); }
template <class T> T __shfl_sync(unsigned, T x, unsigned from) { return oncpu::exchange(x, from); }
template <class T> T __shfl_up_sync(unsigned, T x, unsigned by) {
    unsigned lane = oncpu::self % 32;
    return oncpu::exchange(x, lane < by ? lane : lane - by);
}
template <class T> T atomicAdd(T* p, T x) {
    T old = *p;
    *p = old + x;
    return old;
}
template <class T> T atomicMin(T* p, T x) {
    T old = *p;
    *p = std::min(old, x);
    return old;
}
static inline unsigned __float_as_uint(float x) { return oncpu::same_bits<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return oncpu::same_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return oncpu::same_bits<long long>(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
