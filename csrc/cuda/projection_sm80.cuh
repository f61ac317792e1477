// Any chip from sm_80 on: a block sums its share of a segment's column tiles.
#pragma once

#include "tile.cuh"

namespace bayesrm::cuda {

template <int R, int K>
struct Sm80Memory {  // bytes from the start of shared memory
    static constexpr int kTokens = 32, kStages = 3;
    static constexpr int kQ = kTokens * kColumns * 2;
    static constexpr int kStage = kQ + 2 * kTokens * R * 2;
    static constexpr int kScratch = kStages * kStage;
    static constexpr int kBytes = kScratch + Shape<R, K>::kScratchBytes;
    static_assert(kBytes <= 163 * 1024);  // what a block may have on an A100
};

// One stage: tokens [first, end) of p, and of q at 256 columns.
template <int R, int K>
__device__ inline void load_stage(const Problem& problem, SharedAddress stage, int64_t first, int64_t end, int column,
                                  int thread) {
    using Memory = Sm80Memory<R, K>;
    const auto* q = static_cast<const uint16_t*>(problem.q);
    for (int chunk = thread; chunk < Memory::kTokens * kColumns / 8; chunk += kThreads) {
        const int token = chunk / (kColumns / 8), within = chunk % (kColumns / 8) * 8;
        const bool live = first + token < end && column + within < problem.d;
        ptx::copy_async(stage + q_offset<Memory::kTokens>(token, within),
                        live ? q + (first + token) * problem.d + column + within : q, live);
    }
    copy_p<R, Memory::kTokens>(problem, stage + Memory::kQ, first, end, thread, kThreads);
}

// parts [count, groups, R, K + R]: [H | S] of every block's column tiles. Grid: count * groups.
template <int R, int K>
__global__ void __launch_bounds__(kThreads) sum_column_tiles(const Problem problem, int groups) {
    using Memory = Sm80Memory<R, K>;
    unsigned char* memory = ptx::shared_memory();
    const SharedAddress ring = ptx::shared_address(memory), scratch = ring + Memory::kScratch;
    const int thread = threadIdx.x;
    const Lane at = {thread / 32, thread % 32};
    const int64_t segment = blockIdx.x / groups;
    const int64_t begin = problem.offsets[segment], end = problem.offsets[segment + 1];
    const int rounds = static_cast<int>((end - begin + Memory::kTokens - 1) / Memory::kTokens);

    float sums[Shape<R, K>::kTiles][4] = {};
    for (int column = int(blockIdx.x % groups) * kColumns; column < problem.d; column += groups * kColumns) {
        float gradient[R / 16][4][4] = {};
        auto load = [&](int round) {
            if (round < rounds)
                load_stage<R, K>(problem, ring + round % Memory::kStages * Memory::kStage,
                                 begin + int64_t(round) * Memory::kTokens, end, column, thread);
            ptx::commit_copies();
        };
        for (int round = 0; round < Memory::kStages - 1; ++round) load(round);
        for (int round = 0; round < rounds; ++round) {
            ptx::wait_for_copies<Memory::kStages - 2>();
            ptx::barrier(kBarrier, kThreads);  // also: all are done with the stage that is loaded next
            load(round + Memory::kStages - 1);
            const SharedAddress stage = ring + round % Memory::kStages * Memory::kStage;
            const int64_t left = end - begin - int64_t(round) * Memory::kTokens;
            const int count = left < Memory::kTokens ? static_cast<int>(left) : Memory::kTokens;
            add_tokens<R, Memory::kTokens>(gradient, stage + Memory::kQ, p_parts(problem), stage, count, at);
        }
        add_tile<R, K>(sums, gradient, memory + Memory::kScratch, scratch, problem, column, at);
    }
    float* part = problem.parts + int64_t(blockIdx.x) * R * Shape<R, K>::kWidth;
    gather_sums<R, K>(sums, reinterpret_cast<float*>(memory + Memory::kScratch), part, at);
}

}  // namespace bayesrm::cuda
