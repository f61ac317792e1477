#include "projection_sm80.cuh"

#include "launch.h"

namespace bayesrm::cuda {

void require_kernels() {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, sum_column_tiles<16, 16>), "the portable kernel");
}

void project_portable(const Problem& problem, const Launch& launch, void* stream) {
    for_shape(launch, [&]<int R, int K>(Compiled<R, K>) {
        using Memory = PortableMemory<R, K>;
        const auto on = static_cast<cudaStream_t>(stream);
        const auto allow = [](auto kernel, int bytes) {
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "shared memory");
        };
        allow(sum_column_tiles<R, K>, Memory::kBytes);
        allow(finish_segments<R, K>, Memory::kFinishBytes);
        sum_column_tiles<R, K><<<problem.count * launch.blocks, kThreads, Memory::kBytes, on>>>(problem, launch.blocks);
        check(cudaGetLastError(), "the portable kernel");
        finish_segments<R, K><<<problem.count, kThreads, Memory::kFinishBytes, on>>>(problem, launch.blocks);
        check(cudaGetLastError(), "the portable kernel's second part");
    });
}

}  // namespace bayesrm::cuda
