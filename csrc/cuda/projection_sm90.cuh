// sm_90: q by the copy engine through a ring in shared memory, a segment's column tiles over the blocks of a cluster, whose
// sums one of them collects through distributed shared memory. One launch; q is read once; no atomics.
#pragma once

#include "finish.cuh"

namespace bayesrm::cuda {

constexpr int kSm90Threads = kThreads + 128;  // the last four warps give their registers away, and one of them copies
constexpr int kBoxTokens = 16;                 // of one copy: a short segment reads little that is not its own
constexpr int kMostSorted = 256;               // segments that are dealt out by length

template <int R, int K>
struct Sm90Memory {  // bytes from the start of shared memory
    static constexpr int kTokens = R == 64 ? 32 : 64, kStages = R == 64 ? 5 : 4;
    static constexpr int kQ = kTokens * kColumns * 2;
    static constexpr int kStage = kQ + 2 * kTokens * R * 2;
    static constexpr int kScratch = kStages * kStage;
    static constexpr int kGathered = kScratch + Shape<R, K>::kScratchBytes;
    static constexpr int kFull = kGathered + Shape<R, K>::kGatheredBytes;  // [kStages], and the other barriers after it
    static constexpr int kEmpty = kFull + 8 * kStages;
    static constexpr int kReady = kEmpty + 8 * kStages;  // every block's sums of a segment are there
    static constexpr int kFree = kReady + 8;             // and have been collected
    static constexpr int kOrder = kFree + 8;
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

// What a cluster works at in turn; every warp of every block of it walks the same list.
struct Schedule {
    const Problem& problem;
    const uint16_t* order;
    int cluster = ptx::cluster_index(), clusters = ptx::clusters();

    // The turn-th segment, or -1 at the end. Sorted ones are dealt to and fro, so that sums of lengths come out alike.
    __device__ int64_t segment(int turn) const {
        const bool sorted = problem.count <= kMostSorted;
        const int64_t place =
            int64_t(turn) * clusters + (sorted && turn % 2 == 1 ? clusters - 1 - cluster : cluster);
        return place >= problem.count ? -1 : sorted ? order[place] : place;
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
                                  const uint16_t* order, int blocks) {
    using Memory = Sm90Memory<R, K>;
    const Schedule schedule = {problem, order};
    const int rank = ptx::cluster_rank(), lane = ptx::thread_index() % 32;
    RingPlace place;
    int64_t segment;
    for (int turn = 0; (segment = schedule.segment(turn)) >= 0; ++turn) {
        const int64_t begin = problem.offsets[segment], end = problem.offsets[segment + 1];
        for (int column = rank * kColumns; column < problem.d; column += blocks * kColumns)
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

// gathered += the same of the other blocks; always in the order of their ranks.
template <int R, int K>
__device__ inline void collect(float* gathered, int blocks, int thread) {
    for (int e = thread; e < R * Shape<R, K>::kWidth; e += kThreads) {
        float sum = 0;
        for (int rank = 0; rank < blocks; ++rank) sum += ptx::load_remote(ptx::shared_address(gathered + e), rank);
        gathered[e] = sum;
    }
}

template <int R, int K>
__device__ inline void compute_segments(const Problem& problem, unsigned char* memory, const uint16_t* order, int blocks) {
    using Memory = Sm90Memory<R, K>;
    const Schedule schedule = {problem, order};
    const int rank = ptx::cluster_rank(), thread = ptx::thread_index();
    const SharedAddress base = ptx::shared_address(memory);
    auto* scratch = reinterpret_cast<float*>(memory + Memory::kScratch);
    auto* gathered = reinterpret_cast<float*>(memory + Memory::kGathered);
    const Lane at = {thread / 32, thread % 32};
    RingPlace place;
    int64_t segment;
    for (int turn = 0; (segment = schedule.segment(turn)) >= 0; ++turn) {
        const int64_t begin = problem.offsets[segment], end = problem.offsets[segment + 1];
        float sums[Shape<R, K>::kTiles][4] = {};
        for (int column = rank * kColumns; column < problem.d; column += blocks * kColumns) {
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
        if (turn > 0) ptx::wait_barrier(base + Memory::kFree, (turn - 1) % 2);
        gather_sums<R, K>(sums, scratch, gathered, at);
        ptx::barrier(kBarrier, kThreads);
        const int collector = turn % blocks;
        if (thread == 0) ptx::arrive_remote(base + Memory::kReady, collector);
        if (rank != collector) continue;
        ptx::wait_barrier(base + Memory::kReady, turn / blocks % 2);
        collect<R, K>(gathered, blocks, thread);
        ptx::barrier(kBarrier, kThreads);
        if (thread < blocks) ptx::arrive_remote(base + Memory::kFree, thread);
        finish_segment<R, K>(problem, segment, gathered, scratch, thread);
    }
}

// Grid: clusters * blocks, in clusters of `blocks`.
template <int R, int K>
__global__ void __launch_bounds__(kSm90Threads, 1)
    project_segments(const Problem problem, const __grid_constant__ ptx::TensorMap q, int blocks) {
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
        ptx::init_barrier(base + Memory::kReady, blocks);
        ptx::init_barrier(base + Memory::kFree, 1);
        ptx::fence_barrier_init();
    }
    if (problem.count <= kMostSorted)
        sort_segments(problem, order, reinterpret_cast<int*>(memory + Memory::kScratch), thread);
    ptx::cluster_barrier();
    if (thread < kThreads) {
        ptx::claim_registers<216>();
        compute_segments<R, K>(problem, memory, order, blocks);
    } else {
        ptx::release_registers<72>();
        if (ptx::thread_index() < kThreads + 32) copy_tiles<R, K>(problem, &q, base, order, blocks);
    }
    ptx::cluster_barrier();  // no block leaves while another may read its sums
#endif
}

}  // namespace bayesrm::cuda
