#pragma once

#include "projection.h"

namespace bayesrm::BAYESRM_ISA {

void kron_project(const Segments& s, const Basis& basis, float* coordinates, float* outside, int threads) {
    auto sink = [&](int64_t n, int64_t i, const float* minus_c, int64_t stride, float norm) {
        float* row = coordinates + (n * s.r + i) * basis.k;
        for (int64_t j = 0; j < basis.k; ++j) row[j] = -minus_c[j * stride];
        outside[n * s.r + i] = norm;
    };
    if (s.q_dtype == DType::float32)
        project<float>(s, basis, threads, sink);
    else
        project<BFloat16>(s, basis, threads, sink);
}

}  // namespace bayesrm::BAYESRM_ISA
