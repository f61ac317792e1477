// The functions of csrc/cuda/ptx.cuh for a CPU, so that the kernels' own source runs in a test: a fiber per thread, and as
// hostile as the hardware may be. Warps advance in random order, copies arrive late and in any order, fresh shared memory is
// NaN and turns NaN again when its block is gone, and a matrix unit truncates what it adds. emulator.h has the machine.
#pragma once

#include "emulator.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define threadIdx (bayesrm::emulator::running().thread_index)
#define blockIdx (bayesrm::emulator::running().block->index)
#define gridDim (bayesrm::emulator::running().block->grid)
#define BAYESRM_SM90

struct float2 {
    float x, y;
};
struct float4 {
    float x, y, z, w;
};
struct uint4 {
    uint32_t x, y, z, w;
};

namespace bayesrm::ptx {

using emulator::running;
using SharedAddress = uint32_t;
using TensorMap = emulator::Matrix;

inline unsigned char* shared_memory() { return running().block->memory.data(); }

inline SharedAddress shared_address(const void* pointer) {
    return running().block->address(static_cast<const unsigned char*>(pointer));
}

inline float as_float(uint32_t bits) { return std::bit_cast<float>(bits); }

inline uint32_t pack_bf16(float low, float high) {
    return emulator::bf16(low) | uint32_t(emulator::bf16(high)) << 16;
}

inline float2 load_constant(const float2* from) { return *from; }
inline float load_constant(const float* from) { return *from; }
inline float4 load_constant(const float4* from) { return *from; }

inline uint4 load_once(const uint4* from) {
    emulator::Machine::the().check_source(from, sizeof *from, true);
    return *from;
}

inline void prefetch(const void* from) { emulator::Machine::the().check_source(from, 1, true); }

inline void load_matrices(uint32_t (&to)[4], SharedAddress row, bool transposed) {
    emulator::Warp& warp = *running().warp;
    warp.offer(to, row);
    warp.meet([&] {
        for (int m = 0; m < 4; ++m)
            for (int lane = 0; lane < 32; ++lane) {
                uint16_t pair[2];
                for (int e = 0; e < 2; ++e) {
                    const int first = lane / 4, second = lane % 4 * 2 + e;
                    const int i = transposed ? second : first, j = transposed ? first : second;
                    const unsigned char* from = running().block->at(warp.offers[m * 8 + i].address, 16);
                    std::memcpy(&pair[e], from + 2 * j, 2);
                }
                static_cast<uint32_t*>(warp.offers[lane].to)[m] = pair[0] | uint32_t(pair[1]) << 16;
            }
    });
}

inline void ldmatrix(uint32_t (&to)[4], SharedAddress row) { load_matrices(to, row, false); }
inline void ldmatrix_transposed(uint32_t (&to)[4], SharedAddress row) { load_matrices(to, row, true); }

inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b_first, uint32_t b_second) {
    struct Operands {
        float* c;
        const uint32_t* a;
        uint32_t b[2];
    } mine = {c, a, {b_first, b_second}};
    emulator::Warp& warp = *running().warp;
    warp.offer(&mine, 0);
    warp.meet([&] {
        float left[16][16], right[16][8];
        auto of = [&](int lane) -> Operands& { return *static_cast<Operands*>(warp.offers[lane].to); };
        for (int lane = 0; lane < 32; ++lane)
            for (int e = 0; e < 2; ++e) {
                auto half = [&](uint32_t pair) { return as_float(e == 0 ? pair << 16 : pair & 0xffff0000u); };
                const int major = lane / 4, minor = lane % 4 * 2 + e;
                for (int part = 0; part < 4; ++part)
                    left[major + part % 2 * 8][minor + part / 2 * 8] = half(of(lane).a[part]);
                for (int part = 0; part < 2; ++part) right[minor + part * 8][major] = half(of(lane).b[part]);
            }
        for (int lane = 0; lane < 32; ++lane)
            for (int e = 0; e < 4; ++e) {
                float& sum = of(lane).c[e];
                sum = emulator::truncated_sum(sum, left[lane / 4 + e / 2 * 8], &right[0][lane % 4 * 2 + e % 2], 8);
            }
    });
}

inline void warp_barrier() {
    running().warp->offer(nullptr, 0);
    running().warp->meet([] {});
}

inline void barrier(int name, int threads) { running().block->named[name].meet(threads, [] {}); }

inline void copy_async(SharedAddress to, const void* from, bool live) {
    emulator::Machine::the().check_source(from, 16, live);
    running().copies.push_back({to, live ? from : nullptr});
}

inline void commit_copies() { emulator::Machine::the().send_copies(0); }

template <int PENDING>
inline void wait_for_copies() {
    emulator::Fiber& fiber = running();
    const int64_t needed = fiber.sent - PENDING;
    emulator::wait_until([&] { return fiber.under_way.empty() || *fiber.under_way.begin() >= needed; });
}

inline void init_barrier(SharedAddress barrier, int arrivals) { running().block->barriers[barrier] = {arrivals, arrivals}; }
inline void fence_barrier_init() {}
inline void arrive(SharedAddress barrier) { running().block->barrier(barrier).arrive(); }

inline void arrive_expecting(SharedAddress barrier, uint32_t bytes) {
    running().block->barrier(barrier).bytes += bytes;
    arrive(barrier);
}

inline void arrive_after_copies(SharedAddress barrier) { emulator::Machine::the().send_copies(barrier); }

inline void wait_barrier(SharedAddress barrier, uint32_t parity) {
    const emulator::Mbarrier& waited = running().block->barrier(barrier);
    emulator::wait_until([&] { return waited.phase % 2 != parity; });
}

inline void load_box(SharedAddress to, const TensorMap* map, int column, int row, SharedAddress barrier) {
    emulator::Machine::the().send_box(to, *map, column, row, barrier);
}

template <int COUNT>
inline void claim_registers() {}
template <int COUNT>
inline void release_registers() {}

inline int thread_index() { return threadIdx.x; }
inline int block_index() { return static_cast<int>(blockIdx.x); }
inline int blocks() { return static_cast<int>(gridDim.x); }

}  // namespace bayesrm::ptx
