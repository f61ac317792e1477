// sm_90: blocks that stay on their multiprocessor and take items in turn, a segment and a share of its column tiles each. One
// warp has the copy engine load q into a ring in shared memory, ahead by whole items; the others multiply. q is read once.
#pragma once

#include "tile.cuh"

namespace bayesrm::cuda {

constexpr int kSm90Threads = kThreads + 128;  // the last four warps give their registers away, and one of them copies
constexpr int kBoxTokens = 16;                 // of one copy: a short segment reads little that is not its own
constexpr int kMostSorted = 256;               // segments that are dealt out by length

template <int R, int K>
struct Sm90Memory {  // bytes from the start of shared memory
    static constexpr int kTokens = R == 64 ? 32 : 64, kStages = R == 64 ? 6 : R == 32 ? 4 : 5;
    static constexpr int kQ = kTokens * kColumns * 2;
    static constexpr int kStage = kQ + 2 * kTokens * R * 2;
    static constexpr int kScratch = kStages * kStage;
    static constexpr int kFull = kScratch + Shape<R, K>::kScratchBytes;  // [kStages], and the other barriers after it
    static constexpr int kEmpty = kFull + 8 * kStages;
    static constexpr int kOrder = kEmpty + 8 * kStages;
    static constexpr int kBytes = kOrder + kMostSorted * 2;
    static_assert(kBytes <= 227 * 1024);  // what a block may have on an H100
};

// Segments from the longest to the shortest; ties by number. `lengths` has room for kMostSorted. All threads.
__device__ inline void sort_segments(const Problem& problem, uint16_t* order, int* lengths, int thread) {
    static_assert(kMostSorted <= kSm90Threads);
    const int n = thread;
    if (n < problem.count) lengths[n] = static_cast<int>(problem.offsets[n + 1] - problem.offsets[n]);
    ptx::barrier(0, kSm90Threads);
    if (n >= problem.count) return;
    int longer = 0;
    for (int m = 0; m < problem.count; ++m) longer += lengths[m] > lengths[n] || (lengths[m] == lengths[n] && m < n);
    order[longer] = static_cast<uint16_t>(n);
}

// What a block works at in turn; every warp of it walks the same list.
struct Item {
    int64_t segment;
    int group;  // of the segment's column tiles: every groups-th from this one on
};

struct Schedule {
    const Problem& problem;
    const uint16_t* order;
    int groups;

    // False at the end. Sorted ones are dealt to and fro, so that sums of lengths come out alike.
    __device__ bool take(int turn, Item& item) const {
        const int block = ptx::block_index(), blocks = ptx::blocks();
        const bool sorted = problem.count <= kMostSorted;
        const int64_t place = int64_t(turn) * blocks + (sorted && turn % 2 == 1 ? blocks - 1 - block : block);
        if (place >= int64_t(problem.count) * groups) return false;
        const int segment = static_cast<int>(place / groups);
        item = {sorted ? order[segment] : segment, static_cast<int>(place % groups)};
        return true;
    }
};

struct RingPlace {
    int stage = 0;
    uint32_t phase = 0;
    __device__ void advance(int stages) {
        if (++stage == stages) stage = 0, phase ^= 1;
    }
};

template <int R, int K>
__device__ inline void copy_tiles(const Problem& problem, const ptx::TensorMap* q, SharedAddress memory,
                                  const Schedule& schedule) {
    using Memory = Sm90Memory<R, K>;
    const int lane = ptx::thread_index() % 32;
    RingPlace place;
    Item item;
    for (int turn = 0; schedule.take(turn, item); ++turn) {
        const int64_t begin = problem.offsets[item.segment], end = problem.offsets[item.segment + 1];
        for (int column = item.group * kColumns; column < problem.d; column += schedule.groups * kColumns)
            for (int64_t first = begin; first < end; first += Memory::kTokens) {
                const SharedAddress full = memory + Memory::kFull + 8 * place.stage;
                const SharedAddress stage = memory + place.stage * Memory::kStage;
                ptx::wait_barrier(memory + Memory::kEmpty + 8 * place.stage, place.phase ^ 1);
                if (lane == 0) {
                    const int64_t left = end - first;
                    const int boxes = left < Memory::kTokens ? static_cast<int>((left + kBoxTokens - 1) / kBoxTokens)
                                                             : Memory::kTokens / kBoxTokens;
                    constexpr int kBoxBytes = kBoxTokens * kColumnsPerBox * 2;
                    ptx::arrive_expecting(full, boxes * (kColumns / kColumnsPerBox) * kBoxBytes);
                    for (int box = 0; box < boxes; ++box)
                        for (int within = 0; within < kColumns; within += kColumnsPerBox)
                            ptx::load_box(stage + q_box<Memory::kTokens>(box * kBoxTokens, within), q, column + within,
                                          static_cast<int>(first) + box * kBoxTokens, full);
                }
                copy_p<R, Memory::kTokens>(problem, stage + Memory::kQ, first, end, lane, 32);
                ptx::arrive_after_copies(full);
                place.advance(Memory::kStages);
            }
    }
}

template <int R, int K>
__device__ inline void compute_items(const Problem& problem, unsigned char* memory, const Schedule& schedule) {
    using Memory = Sm90Memory<R, K>;
    const int thread = ptx::thread_index();
    const SharedAddress base = ptx::shared_address(memory);
    const Lane at = {thread / 32, thread % 32};
    RingPlace place;
    Item item;
    for (int turn = 0; schedule.take(turn, item); ++turn) {
        const int64_t begin = problem.offsets[item.segment], end = problem.offsets[item.segment + 1];
        float sums[Shape<R, K>::kTiles][4] = {};
        for (int column = item.group * kColumns; column < problem.d; column += schedule.groups * kColumns) {
            float gradient[R / 16][4][4] = {};
            for (int64_t first = begin; first < end; first += Memory::kTokens) {
                const int count = end - first < Memory::kTokens ? static_cast<int>(end - first) : Memory::kTokens;
                const SharedAddress stage = base + place.stage * Memory::kStage;
                ptx::wait_barrier(base + Memory::kFull + 8 * place.stage, place.phase);
                add_tokens<R, Memory::kTokens>(gradient, stage + Memory::kQ, p_parts(problem), stage, count, at);
                ptx::warp_barrier();
                if (at.lane == 0) ptx::arrive(base + Memory::kEmpty + 8 * place.stage);
                place.advance(Memory::kStages);
            }
            add_tile<R, K>(sums, gradient, memory + Memory::kScratch, base + Memory::kScratch, problem, column, at);
        }
        float* part = problem.parts + (item.segment * schedule.groups + item.group) * R * Shape<R, K>::kWidth;
        gather_sums<R, K>(sums, reinterpret_cast<float*>(memory + Memory::kScratch), part, at);
    }
}

// parts [count, groups, R, K + R]: [H | S] of every item's column tiles. Any grid.
template <int R, int K>
__global__ void __launch_bounds__(kSm90Threads, 1)
    sum_items(const Problem problem, const __grid_constant__ ptx::TensorMap q, int groups) {
#ifdef BAYESRM_SM90
    using Memory = Sm90Memory<R, K>;
    unsigned char* memory = ptx::shared_memory();
    const SharedAddress base = ptx::shared_address(memory);
    const int thread = ptx::thread_index();
    auto* order = reinterpret_cast<uint16_t*>(memory + Memory::kOrder);
    if (thread == 0) {
        for (int stage = 0; stage < Memory::kStages; ++stage) {
            ptx::init_barrier(base + Memory::kFull + 8 * stage, 32 + 1);  // a warp's copies of p, and q's bytes
            ptx::init_barrier(base + Memory::kEmpty + 8 * stage, kWarps);
        }
        ptx::fence_barrier_init();
    }
    if (problem.count <= kMostSorted)
        sort_segments(problem, order, reinterpret_cast<int*>(memory + Memory::kScratch), thread);
    ptx::barrier(0, kSm90Threads);
    const Schedule schedule = {problem, order, groups};
    if (thread < kThreads) {
        ptx::claim_registers<216>();
        compute_items<R, K>(problem, memory, schedule);
    } else {
        ptx::release_registers<72>();
        if (ptx::thread_index() < kThreads + 32) copy_tiles<R, K>(problem, &q, base, schedule);
    }
#endif
}

}  // namespace bayesrm::cuda
