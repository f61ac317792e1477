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

void sum_columns_sm80(const Problem& problem, const Launch& launch, void* stream) {
    for_shape(launch, [&]<int R, int K>(Compiled<R, K>) {
        constexpr int kBytes = Sm80Memory<R, K>::kBytes;
        check(cudaFuncSetAttribute(sum_column_tiles<R, K>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
              "shared memory");
        sum_column_tiles<R, K>
            <<<launch.blocks, kThreads, kBytes, static_cast<cudaStream_t>(stream)>>>(problem, launch.groups);
        check(cudaGetLastError(), "the sm80 kernel");
    });
}

}  // namespace bayesrm::cuda
