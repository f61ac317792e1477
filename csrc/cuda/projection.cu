#include "finish.cuh"

#include "check.h"
#include "shapes.h"

namespace bayesrm::cuda {

void project(const Problem& problem, const Launch& launch, bool sm90, void* stream) {
    (sm90 ? sum_columns_sm90 : sum_columns_sm80)(problem, launch, stream);
    for_shape(launch, [&]<int R, int K>(Compiled<R, K>) {
        constexpr int kBytes = FinishMemory<R, K>::kBytes;
        check(cudaFuncSetAttribute(finish_segments<R, K>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
              "shared memory");
        finish_segments<R, K>
            <<<problem.count, kThreads, kBytes, static_cast<cudaStream_t>(stream)>>>(problem, launch.groups);
        check(cudaGetLastError(), "the kernel that finishes segments");
    });
}

}  // namespace bayesrm::cuda
