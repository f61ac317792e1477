// The kernels under the emulator, as a library for ctypes.
#include "emulator.cpp"

#include "finish.cuh"
#include "ggn.cuh"
#include "halves.cuh"
#include "projection_sm80.cuh"
#include "projection_sm90.cuh"
#include "shapes.h"

namespace {

using namespace bayesrm::cuda;
using bayesrm::emulator::Machine;
using bayesrm::emulator::Matrix;

template <int R, int K>
void run(const Problem& problem, const Launch& launch, bool sm90) {
    Machine& machine = Machine::the();
    if (sm90) {
        const Matrix q = {static_cast<const uint16_t*>(problem.q), problem.tokens, problem.d, kBoxTokens, kColumnsPerBox};
        machine.launch(launch.blocks, kSm90Threads, Sm90Memory<R, K>::kBytes,
                       [&] { sum_items<R, K>(problem, q, launch.groups); });
    } else {
        machine.launch(launch.blocks, kThreads, Sm80Memory<R, K>::kBytes,
                       [&] { sum_column_tiles<R, K>(problem, launch.groups); });
    }
    machine.launch(problem.count, kThreads, FinishMemory<R, K>::kBytes,
                   [&] { finish_segments<R, K>(problem, launch.groups); });
}

}  // namespace

extern "C" int shared_memory(int sm90, const Launch* launch) {
    return for_shape(*launch, [&]<int R, int K>(Compiled<R, K>) {
        return sm90 ? Sm90Memory<R, K>::kBytes : Sm80Memory<R, K>::kBytes;
    });
}

extern "C" void emulate_split(const void* p, int is_float, uint32_t* high, uint32_t* low, int64_t tokens, int r,
                              int p_stride) {
    Machine::the().launch(3, kThreads, 16, [&] {
        if (is_float)
            split_pairs(static_cast<const float*>(p), high, low, tokens, r, p_stride);
        else
            split_pairs(static_cast<const uint16_t*>(p), high, low, tokens, r, p_stride);
    });
}

extern "C" int emulate_ggn(const GgnProblem* problem, int rows, int bases, uint64_t seed, char* error, int room) {
    try {
        const size_t p_bytes = problem->tokens * problem->p_stride * 2;
        const size_t bases_bytes = size_t(problem->k) * problem->r * problem->d * (problem->bases_are_float ? 4 : 2);
        Machine& machine = Machine::the();
        machine.begin(seed, {{problem->p, p_bytes},
                             {problem->p_low, problem->p_low == nullptr ? 0 : p_bytes},
                             {problem->q, problem->tokens * problem->d * 2},
                             {problem->bases, bases_bytes}});
        const auto blocks_of = [](int size, int each) { return (size + each - 1) / each; };
        const int chunks = std::max(1, blocks_of(problem->k, bases));
        for_rows(rows, [&]<int R>(Rows<R>) {
            machine.launch(problem->count * blocks_of(problem->d, kColumnsPerBox) * chunks, kThreads, GgnMemory<R>::kBytes,
                           [&] {
                               if (problem->bases_are_float)
                                   stream_bases<R, float>(*problem, bases);
                               else
                                   stream_bases<R, uint16_t>(*problem, bases);
                           });
        });
        machine.launch(problem->count * blocks_of(problem->k + 1, kThreads), kThreads, 16, [&] { sum_tiles(*problem); });
        return 0;
    } catch (const std::exception& failure) {
        std::snprintf(error, room, "%s", failure.what());
        return 1;
    }
}

// 0, or 1 with the reason in `error`.
extern "C" int emulate(const Problem* problem, const Launch* launch, int sm90, uint64_t seed, char* error, int room) {
    try {
        const size_t p_bytes = problem->tokens * problem->p_stride * 2;
        Machine::the().begin(seed, {{problem->p, p_bytes},
                                    {problem->p_low, problem->p_low == nullptr ? 0 : p_bytes},
                                    {problem->q, problem->tokens * problem->d * 2}});
        for_shape(*launch, [&]<int R, int K>(Compiled<R, K>) { run<R, K>(*problem, *launch, sm90); });
        return 0;
    } catch (const std::exception& failure) {
        std::snprintf(error, room, "%s", failure.what());
        return 1;
    }
}
