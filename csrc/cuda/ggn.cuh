// Products of few segments' gradients with many bases, where reading the bases is nearly all there is to do: a block forms a
// narrow tile of one gradient, keeps it in shared memory, and multiplies bases with it as they come.
//
// Sums are in float32, each over one tile, and the tiles' sums are added as pairs: q in bfloat16 needs no more digits, as
// tile.cuh says.
#pragma once

#include "tile.cuh"

namespace bayesrm::cuda {

template <int R>
struct GgnMemory {  // bytes from the start of shared memory
    static constexpr int kSteps = kWarps * 32 / kColumnsPerBox, kTokens = 16;  // 16 tokens are a step of a pair of warps
    static constexpr int kQ = kTokens * kColumnsPerBox * 2;
    static constexpr int kStep = kQ + 2 * kTokens * R * 2;
    static constexpr int kStages = 3;
    static constexpr int kTile = R * kColumnsPerBox * 4;
    // The ring, the steps' shares of the tile and the lanes' sums are never alive together; the tile itself stays.
    static constexpr int kRing = kTile;
    static constexpr int kBytes = kRing + std::max({kStages * kSteps * kStep, kSteps * kTile, kMostBases * 32 * 4});
    static_assert(kBytes <= 99 * 1024);  // what a block may have on any chip since sm_80
};

// Elements of a base that a lane loads at once: 16 bytes.
template <class T>
constexpr int kEach = 16 / sizeof(T);

template <class T>
__device__ inline float element(const uint4& loaded, int e) {
    const uint32_t words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
    if constexpr (sizeof(T) == 4) return ptx::as_float(words[e]);
    return ptx::as_float(e % 2 == 0 ? words[e / 2] << 16 : words[e / 2] & 0xffff0000u);
}

// 64 columns of a segment's gradient into `tile` [R, 64]; `ring` is free afterwards.
template <int R>
__device__ inline void form_tile(const GgnProblem& problem, int64_t segment, int column, float* tile, unsigned char* ring,
                                 int thread) {
    using Memory = GgnMemory<R>;
    constexpr int kTogether = Memory::kSteps * Memory::kTokens;  // tokens of a stage
    const SharedAddress ring_address = ptx::shared_address(ring);
    const Lane at = {thread / 32 % 2, thread % 32};  // of the pair
    const int pair = thread / 64;
    const int64_t begin = problem.offsets[segment], end = problem.offsets[segment + 1];
    const int rounds = static_cast<int>((end - begin + kTogether - 1) / kTogether);
    const auto* q = static_cast<const uint16_t*>(problem.q);
    auto step_of = [&](int round) {
        return ring_address + (round % Memory::kStages * Memory::kSteps + pair) * Memory::kStep;
    };
    // Each pair copies its own tokens, but waits with all: a named barrier for each would be no faster.
    auto load = [&](int round) {
        if (round < rounds) {
            const int64_t first = begin + int64_t(round) * kTogether + pair * Memory::kTokens;
            for (int chunk = thread % 64; chunk < Memory::kQ / 16; chunk += 64) {
                const int token = chunk / 8, within = chunk % 8 * 8;
                const bool live = first + token < end && column + within < problem.d;
                ptx::copy_async(step_of(round) + q_offset<Memory::kTokens>(token, within),
                                live ? q + (first + token) * problem.d + column + within : q, live);
            }
            copy_p<R, Memory::kTokens>(problem, step_of(round) + Memory::kQ, first, end, thread % 64, 64);
        }
        ptx::commit_copies();
    };
    float gradient[R / 16][4][4] = {};
    for (int round = 0; round < Memory::kStages - 1; ++round) load(round);
    for (int round = 0; round < rounds; ++round) {
        ptx::wait_for_copies<Memory::kStages - 2>();
        ptx::barrier(kBarrier, kThreads);  // also: all are done with the stage that is loaded next
        load(round + Memory::kStages - 1);
        const int64_t left = end - begin - int64_t(round) * kTogether - pair * Memory::kTokens;
        const int count = left < Memory::kTokens ? static_cast<int>(left) : Memory::kTokens;
        add_tokens<R, Memory::kTokens>(gradient, step_of(round) + Memory::kQ, p_parts(problem), step_of(round), count, at);
    }
    ptx::wait_for_copies<0>();
    ptx::barrier(kBarrier, kThreads);  // all are done with the ring
    auto* shares = reinterpret_cast<float*>(ring);  // [steps, R, 64]
#pragma unroll
    for (int m = 0; m < R / 16; ++m)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int row = m * 16 + e / 2 * 8 + at.upper(), within = at.warp * 32 + j * 8 + at.left() + e % 2;
                shares[(pair * R + row) * kColumnsPerBox + within] = gradient[m][j][e];
            }
    ptx::barrier(kBarrier, kThreads);
    for (int e = thread; e < R * kColumnsPerBox; e += kThreads) {
        float sum = 0;
        for (int step = 0; step < Memory::kSteps; ++step) sum += shares[step * R * kColumnsPerBox + e];
        tile[e] = sum;
    }
    ptx::barrier(kBarrier, kThreads);
}

// sums [bases, 32]: of each base from `first` on what every lane has of its product with the tile. A warp has every eighth.
template <class T>
__device__ inline void multiply_bases(const GgnProblem& problem, int first, int bases, int column, const float* tile,
                                      float* sums, int thread) {
    constexpr int kLanes = kColumnsPerBox / kEach<T>, kRows = 32 / kLanes;  // of a row, and rows of a load
    constexpr int kAhead = 8;                                               // loads under way for each lane
    const int warp = thread / 32, lane = thread % 32, within = lane % kLanes * kEach<T>;
    const int row_groups = (problem.r + kRows - 1) / kRows;
    const int jobs = (bases - warp + kWarps - 1) / kWarps * row_groups;
    const auto* from = static_cast<const T*>(problem.bases) + column + within;
    float sum = 0;
    for (int begin = 0; begin < jobs; begin += kAhead) {
        uint4 loaded[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int job = begin + i, base = first + warp + job / row_groups * kWarps;
            const int row = job % row_groups * kRows + lane / kLanes;
            loaded[i] = {0, 0, 0, 0};
            if (job < jobs && row < problem.r && column + within < problem.d)
                loaded[i] = ptx::load_once(
                    reinterpret_cast<const uint4*>(from + (int64_t(base) * problem.r + row) * problem.d));
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int job = begin + i;
            if (job >= jobs) break;
            const float* row = tile + (job % row_groups * kRows + lane / kLanes) * kColumnsPerBox + within;
#pragma unroll
            for (int e = 0; e < kEach<T>; ++e) sum += row[e] * element<T>(loaded[i], e);
            if (job % row_groups == row_groups - 1) {
                sums[(warp + job / row_groups * kWarps) * 32 + lane] = sum;
                sum = 0;
            }
        }
    }
}

// parts [count, tiles, k + 1]: a tile's share of each product, and of the squared norm. Grid: count * tiles * the chunks of k.
// Segments come first in it, so that those after one find its bases in the second-level cache.
template <int R, class T>
__global__ void __launch_bounds__(kThreads, R < 64 ? 2 : 1) stream_bases(const GgnProblem problem, int bases) {
    unsigned char* memory = ptx::shared_memory();
    auto* tile = reinterpret_cast<float*>(memory);
    auto* scratch = reinterpret_cast<float*>(memory + GgnMemory<R>::kRing);
    const int thread = threadIdx.x, tiles = (problem.d + kColumnsPerBox - 1) / kColumnsPerBox;
    const int64_t segment = blockIdx.x % problem.count;
    const int tile_index = static_cast<int>(blockIdx.x / problem.count) % tiles;
    const int first = static_cast<int>(blockIdx.x / problem.count) / tiles * bases;
    const int here = first + bases < problem.k ? bases : problem.k - first, column = tile_index * kColumnsPerBox;
    // On their way from memory while the gradient is formed.
    constexpr int kLine = 128 / sizeof(T), kLines = kColumnsPerBox / kLine;
    for (int e = thread; e < here * problem.r * kLines; e += kThreads) {
        const int at = column + e % kLines * kLine;
        if (at < problem.d)
            ptx::prefetch(static_cast<const T*>(problem.bases) + (int64_t(first) * problem.r + e / kLines) * problem.d + at);
    }
    form_tile<R>(problem, segment, column, tile, memory + GgnMemory<R>::kRing, thread);
    multiply_bases<T>(problem, first, here, column, tile, scratch, thread);
    ptx::barrier(kBarrier, kThreads);

    float* part = problem.parts + (segment * tiles + tile_index) * (problem.k + 1);
    if (thread < here) {
        float sum = 0;
        for (int lane = 0; lane < 32; ++lane) sum += scratch[thread * 32 + lane];
        part[first + thread] = sum;
    }
    if (first > 0) return;
    ptx::barrier(kBarrier, kThreads);
    float norm = 0;
    for (int e = thread; e < R * kColumnsPerBox; e += kThreads) norm += tile[e] * tile[e];
    scratch[thread] = norm;
    ptx::barrier(kBarrier, kThreads);
    if (thread != 0) return;
    norm = 0;
    for (int other = 0; other < kThreads; ++other) norm += scratch[other];
    part[problem.k] = norm;
}

// products [count, k] and squared_norm [count] of all tiles' parts, added in one order with what float32 leaves of each sum.
// Grid: count times the chunks of k + 1.
__global__ void __launch_bounds__(kThreads) sum_tiles(const GgnProblem problem) {
    const int chunks = (problem.k + 1 + kThreads - 1) / kThreads;
    const int64_t segment = blockIdx.x / chunks;
    const int j = static_cast<int>(blockIdx.x % chunks) * kThreads + int(threadIdx.x);
    if (j > problem.k) return;
    const int tiles = (problem.d + kColumnsPerBox - 1) / kColumnsPerBox;
    const float* part = problem.parts + segment * tiles * (problem.k + 1) + j;
    float total = 0, rest = 0;
    for (int tile = 0; tile < tiles; ++tile) {
        const float addend = part[int64_t(tile) * (problem.k + 1)], added = total + addend, back = added - total;
        rest += (total - (added - back)) + (addend - back);
        total = added;
    }
    const double both = double(total) + double(rest);
    if (j < problem.k)
        problem.products[segment * problem.k + j] = both;
    else
        problem.squared_norm[segment] = both;
}

}  // namespace bayesrm::cuda
