#include "projection_sm90.cuh"

#include "check.h"
#include "shapes.h"

namespace bayesrm::cuda {
namespace {

// The encoder comes from the driver at run time: nothing is linked that a machine without a GPU lacks.
auto tensor_map_encoder() {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
          "cuTensorMapEncodeTiled");
    if (found == nullptr || result != cudaDriverEntryPointSuccess)
        throw std::runtime_error("this driver has no cuTensorMapEncodeTiled; it needs CUDA 12");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
}

CUtensorMap map_of_q(const Problem& problem) {
    static const auto encode = tensor_map_encoder();
    CUtensorMap map;
    const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(problem.d), static_cast<cuuint64_t>(problem.tokens)};
    const cuuint64_t strides[1] = {static_cast<cuuint64_t>(problem.d) * 2};
    const cuuint32_t box[2] = {kColumnsPerBox, kBoxTokens}, steps[2] = {1, 1};
    const CUresult result =
        encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(problem.q), sizes, strides, box, steps,
               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(result));
    return map;
}

}  // namespace

int sm90_shared_memory(const Launch& launch) {
    return for_shape(launch, []<int R, int K>(Compiled<R, K>) { return Sm90Memory<R, K>::kBytes; });
}

void sum_columns_sm90(const Problem& problem, const Launch& launch, void* stream) {
    const CUtensorMap q = map_of_q(problem);
    for_shape(launch, [&]<int R, int K>(Compiled<R, K>) {
        constexpr int kBytes = Sm90Memory<R, K>::kBytes;
        check(cudaFuncSetAttribute(sum_items<R, K>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "shared memory");
        sum_items<R, K><<<launch.blocks, kSm90Threads, kBytes, static_cast<cudaStream_t>(stream)>>>(problem, q, launch.groups);
        check(cudaGetLastError(), "the sm90 kernel");
    });
}

}  // namespace bayesrm::cuda
