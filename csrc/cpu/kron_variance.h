#pragma once

#include "projection.h"

namespace bayesrm::BAYESRM_ISA {

void kron_variance(const Segments& s, const Basis& basis, const float* weight, const float* residual, float* variance,
                   int threads) {
    std::fill(variance, variance + s.count, 0.0f);
    auto sink = [&](int64_t n, int64_t i, const float* minus_c, int64_t stride, float norm) {
        float inside = 0;
        for (int64_t j = 0; j < basis.k; ++j)
            inside += weight[i * basis.k + j] * minus_c[j * stride] * minus_c[j * stride];
        variance[n] += inside + residual[i] * norm;
    };
    if (s.q_dtype == DType::float32)
        project<float>(s, basis, threads, sink);
    else
        project<BFloat16>(s, basis, threads, sink);
}

}  // namespace bayesrm::BAYESRM_ISA
