#include "ggn.cuh"

#include "check.h"
#include "shapes.h"

namespace bayesrm::cuda {

void ggn_project(const GgnProblem& problem, int rows, int bases, void* stream) {
    const auto on = static_cast<cudaStream_t>(stream);
    const auto blocks_of = [](int64_t size, int each) { return static_cast<unsigned>((size + each - 1) / each); };
    for_rows(rows, [&]<int R>(Rows<R>) {
        constexpr int kBytes = GgnMemory<R>::kBytes;
        const unsigned chunks = problem.k > 0 ? blocks_of(problem.k, bases) : 1;  // the squared norm needs one
        const unsigned blocks = problem.count * blocks_of(problem.d, kColumnsPerBox) * chunks;
        const auto launch = [&](auto kernel) {
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "shared memory");
            kernel<<<blocks, kThreads, kBytes, on>>>(problem, bases);
            check(cudaGetLastError(), "the kernel of ggn_project");
        };
        problem.bases_are_float ? launch(stream_bases<R, float>) : launch(stream_bases<R, uint16_t>);
    });
    sum_tiles<<<problem.count * blocks_of(problem.k + 1, kThreads), kThreads, 0, on>>>(problem);
    check(cudaGetLastError(), "the second kernel of ggn_project");
}

}  // namespace bayesrm::cuda
