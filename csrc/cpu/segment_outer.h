#pragma once

#include "projection.h"

namespace bayesrm::BAYESRM_ISA {

template <class Q>
void segment_outer_of(const Segments& s, float* gradients, int threads) {
    const bool shared = share_segments(s, threads);
    const int64_t room_size = kTokenBlock * s.r;
    Scratch rooms(threads * room_size);
#pragma omp parallel num_threads(threads)
    {
        const Range range(s.d, shared ? omp_get_thread_num() : 0, shared ? omp_get_num_threads() : 1);
        float* const room = rooms.data() + omp_get_thread_num() * room_size;
        auto one_segment = [&](int64_t n) {
            gradient_tile<Q>(s, n, range.begin, range.end - range.begin, gradients + n * s.r * s.d + range.begin, s.d, room);
        };
        if (shared) {
            for (int64_t n = 0; n < s.count; ++n) one_segment(n);
        } else {
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < s.count; ++i) one_segment(s.order[i]);
        }
    }
}

void segment_outer(const Segments& s, float* gradients, int threads) {
    if (s.q_dtype == DType::float32)
        segment_outer_of<float>(s, gradients, threads);
    else
        segment_outer_of<BFloat16>(s, gradients, threads);
}

}  // namespace bayesrm::BAYESRM_ISA
