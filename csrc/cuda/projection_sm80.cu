#include "projection_sm80.cuh"

#include "check.h"
#include "shapes.h"

namespace bayesrm::cuda {

void require_kernels() {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, sum_column_tiles<16, 16>), "the sm80 kernel");
}

int sm80_shared_memory(const Launch& launch) {
    return for_shape(launch, []<int R, int K>(Compiled<R, K>) { return Sm80Memory<R, K>::kBytes; });
}

void project_sm80(const Problem& problem, const Launch& launch, void* stream) {
    for_shape(launch, [&]<int R, int K>(Compiled<R, K>) {
        using Memory = Sm80Memory<R, K>;
        const auto on = static_cast<cudaStream_t>(stream);
        const auto allow = [](auto kernel, int bytes) {
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "shared memory");
        };
        allow(sum_column_tiles<R, K>, Memory::kBytes);
        allow(finish_segments<R, K>, Memory::kFinishBytes);
        sum_column_tiles<R, K><<<problem.count * launch.blocks, kThreads, Memory::kBytes, on>>>(problem, launch.blocks);
        check(cudaGetLastError(), "the sm80 kernel");
        finish_segments<R, K><<<problem.count, kThreads, Memory::kFinishBytes, on>>>(problem, launch.blocks);
        check(cudaGetLastError(), "the sm80 kernel's second part");
    });
}

}  // namespace bayesrm::cuda
