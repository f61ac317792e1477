// p made ready: padded columns, and a float32 as the sum of two bfloat16 values, which is good to 2⁻¹⁸.
#pragma once

#include "tile.cuh"

namespace bayesrm::cuda {

__device__ inline float widened(float value) { return value; }
__device__ inline float widened(uint16_t bits) { return ptx::as_float(uint32_t(bits) << 16); }

// high, low [tokens, p_stride / 2] in pairs; `low` may be null. Any grid.
template <class T>
__global__ void __launch_bounds__(kThreads)
    split_pairs(const T* p, uint32_t* high, uint32_t* low, int64_t tokens, int r, int p_stride) {
    const int pairs = p_stride / 2;
    for (int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x; e < tokens * pairs; e += int64_t(gridDim.x) * kThreads) {
        const int64_t token = e / pairs;
        const int column = static_cast<int>(e % pairs) * 2;
        const T* from = p + token * r + column;
        const Halves pair = halves(column < r ? widened(from[0]) : 0.0f, column + 1 < r ? widened(from[1]) : 0.0f);
        high[e] = pair.high;
        if (low != nullptr) low[e] = pair.low;
    }
}

}  // namespace bayesrm::cuda
