// From [H | S] of a segment to what is asked for: C = VᵀH, the squared norms outside span(U), or the variance.
#pragma once

#include "tile.cuh"

namespace bayesrm::cuda {

// out [R, WIDTH] = start − or + Σ_l left(i, l) right(l, j), 4 × 4 elements a thread, from shared memory and caches.
template <int R, int WIDTH, class Left, class Right, class Store>
__device__ inline void small_product(int inner, int thread, const Left& left, const Right& right, const Store& store) {
    static_assert(R % 4 == 0 && WIDTH % 4 == 0);
    for (int block = thread; block < R * WIDTH / 16; block += kThreads) {
        const int i = block / (WIDTH / 4) * 4, j = block % (WIDTH / 4) * 4;
        float sums[4][4] = {};
        for (int l = 0; l < inner; ++l) {
            float a[4], b[4];
#pragma unroll
            for (int m = 0; m < 4; ++m) a[m] = left(i + m, l), b[m] = right(l, j + m);
#pragma unroll
            for (int m = 0; m < 4; ++m)
#pragma unroll
                for (int n = 0; n < 4; ++n) sums[m][n] += a[m] * b[n];
        }
#pragma unroll
        for (int m = 0; m < 4; ++m)
#pragma unroll
            for (int n = 0; n < 4; ++n) store(i + m, j + n, sums[m][n]);
    }
}

// `gathered` is [H | S], [R, K + R]; `scratch` has room for another, and for R floats more. All computing threads.
template <int R, int K>
__device__ inline void finish_segment(const Problem& problem, int64_t segment, float* gathered, float* scratch, int thread) {
    constexpr int kWidth = K + R;
    const int r = problem.r, k = problem.k;
    auto v = [&](int a, int i) { return a < r && i < r ? ptx::load_constant(problem.basis_p + a * r + i) : 0.0f; };
    float* coordinates = scratch;            // [R, K]
    float* turned = scratch + R * K;         // (S − H Hᵀ) V, [R, R]
    float* contributions = scratch + R * kWidth;  // [R]

    small_product<R, R>(
        K, thread, [&](int i, int l) { return gathered[i * kWidth + l]; },
        [&](int l, int j) { return gathered[j * kWidth + l]; },
        [&](int i, int j, float product) { gathered[i * kWidth + K + j] -= product; });
    small_product<R, K>(
        r, thread, [&](int i, int l) { return v(l, i); }, [&](int l, int j) { return gathered[l * kWidth + j]; },
        [&](int i, int j, float product) { coordinates[i * K + j] = product; });
    ptx::barrier(kBarrier, kThreads);
    small_product<R, R>(
        r, thread, [&](int a, int b) { return gathered[a * kWidth + K + b]; }, [&](int b, int i) { return v(b, i); },
        [&](int a, int i, float product) { turned[a * R + i] = product; });
    ptx::barrier(kBarrier, kThreads);

    if (problem.variance == nullptr)
        for (int e = thread; e < r * k; e += kThreads)
            problem.coordinates[segment * r * k + e] = coordinates[e / k * K + e % k];
    for (int i = thread; i < r; i += kThreads) {
        float norm = 0;
        for (int a = 0; a < r; ++a) norm += v(a, i) * turned[a * R + i];
        norm = norm > 0 ? norm : norm <= 0 ? 0 : norm;  // NaN stays
        if (problem.variance == nullptr) {
            problem.outside[segment * r + i] = norm;
        } else {
            float inside = 0;
            for (int j = 0; j < k; ++j) {
                const float c = coordinates[i * K + j];
                inside += ptx::load_constant(problem.weight + i * k + j) * c * c;
            }
            contributions[i] = inside + ptx::load_constant(problem.residual + i) * norm;
        }
    }
    ptx::barrier(kBarrier, kThreads);
    if (problem.variance != nullptr && thread == 0) {
        float variance = 0;
        for (int i = 0; i < r; ++i) variance += contributions[i];
        problem.variance[segment] = variance;
    }
}

}  // namespace bayesrm::cuda
