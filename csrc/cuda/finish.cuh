// From [H | S] of a segment to what is asked for: C = VᵀH, the squared norms outside span(U), or the variance.
#pragma once

#include "tile.cuh"

namespace bayesrm::cuda {

// Calls store(i, j, Σ_l left(i, l) right(l, j)) for all of [R, WIDTH]; a thread has a square of elements.
template <int R, int WIDTH, class Left, class Right, class Store>
__device__ inline void small_product(int inner, int thread, const Left& left, const Right& right, const Store& store) {
    constexpr int kEach = R * WIDTH / kThreads, kEdge = kEach >= 16 ? 4 : kEach >= 4 ? 2 : 1;
    for (int square = thread; square < R * WIDTH / (kEdge * kEdge); square += kThreads) {
        const int i = square / (WIDTH / kEdge) * kEdge, j = square % (WIDTH / kEdge) * kEdge;
        float sums[kEdge][kEdge] = {};
        for (int l = 0; l < inner; ++l) {
            float a[kEdge], b[kEdge];
#pragma unroll
            for (int m = 0; m < kEdge; ++m) a[m] = left(i + m, l), b[m] = right(l, j + m);
#pragma unroll
            for (int m = 0; m < kEdge; ++m)
#pragma unroll
                for (int n = 0; n < kEdge; ++n) sums[m][n] += a[m] * b[n];
        }
#pragma unroll
        for (int m = 0; m < kEdge; ++m)
#pragma unroll
            for (int n = 0; n < kEdge; ++n) store(i + m, j + n, sums[m][n]);
    }
}

// Sum of a row's addends, which lie beside each other.
template <int R>
__device__ inline float row_sum(const float* addends, int row) {
    float sum = 0;
    for (int l = 0; l < kThreads / R; ++l) sum += addends[row * (kThreads / R) + l];
    return sum;
}

// `gathered` is [H | S], [R, K + R]; `scratch` has Shape::kFinishBytes. All computing threads.
template <int R, int K>
__device__ inline void finish_segment(const Problem& problem, int64_t segment, float* gathered, float* scratch, int thread) {
    constexpr int kWidth = K + R;
    const int r = problem.r, k = problem.k;
    auto v = [&](int a, int i) { return a < r && i < r ? ptx::load_constant(problem.basis_p + a * r + i) : 0.0f; };
    float* coordinates = scratch;               // [R, K]
    float* turned = coordinates + R * K;        // (S − H Hᵀ) V, [R, R]
    float* norms = turned + R * R;              // [R, kThreads / R] addends, and the same of the variance inside the basis
    float* insides = norms + kThreads;
    float* contributions = insides + kThreads;  // [R]

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

    const bool weigh = problem.variance != nullptr;
    constexpr int kEach = kThreads / R;  // threads of a row
    const int row = thread / kEach;
    float norm = 0, inside = 0;
    for (int a = thread % kEach; a < r; a += kEach) norm += v(a, row) * turned[a * R + row];
    if (weigh && row < r)
        for (int j = thread % kEach; j < k; j += kEach) {
            const float c = coordinates[row * K + j];
            inside += ptx::load_constant(problem.weight + row * k + j) * c * c;
        }
    norms[thread] = norm;
    insides[thread] = inside;
    if (!weigh)
        for (int e = thread; e < r * k; e += kThreads)
            problem.coordinates[segment * r * k + e] = coordinates[e / k * K + e % k];
    ptx::barrier(kBarrier, kThreads);

    if (thread < r) {
        const float sum = row_sum<R>(norms, thread);
        const float outside = sum > 0 ? sum : sum <= 0 ? 0 : sum;  // NaN stays
        if (weigh)
            contributions[thread] =
                row_sum<R>(insides, thread) + ptx::load_constant(problem.residual + thread) * outside;
        else
            problem.outside[segment * r + thread] = outside;
    }
    if (!weigh) return;
    ptx::barrier(kBarrier, kThreads);
    if (thread == 0) {
        float variance = 0;
        for (int i = 0; i < r; ++i) variance += contributions[i];
        problem.variance[segment] = variance;
    }
}

}  // namespace bayesrm::cuda
