#include "halves.cuh"

#include <algorithm>

#include "check.h"

namespace bayesrm::cuda {

void split_halves(const void* p, bool is_float, void* high, void* low, int64_t tokens, int r, int p_stride, void* stream) {
    constexpr int64_t kMostBlocks = 1024;  // each walks on from there
    const int64_t pairs = tokens * p_stride / 2;
    const auto blocks = static_cast<unsigned>(std::min((pairs + kThreads - 1) / kThreads, kMostBlocks));
    const auto on = static_cast<cudaStream_t>(stream);
    auto* high_pairs = static_cast<uint32_t*>(high);
    auto* low_pairs = static_cast<uint32_t*>(low);
    if (is_float)
        split_pairs<<<blocks, kThreads, 0, on>>>(static_cast<const float*>(p), high_pairs, low_pairs, tokens, r, p_stride);
    else
        split_pairs<<<blocks, kThreads, 0, on>>>(static_cast<const uint16_t*>(p), high_pairs, low_pairs, tokens, r, p_stride);
    check(cudaGetLastError(), "the splitting of p");
}

}  // namespace bayesrm::cuda
