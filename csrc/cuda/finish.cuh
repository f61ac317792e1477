// From the groups' [H | S] of a segment to what is asked for: C = VᵀH, the squared norms outside span(U), or the variance.
#pragma once

#include "tile.cuh"

namespace bayesrm::cuda {

template <int R, int K>
struct FinishMemory {  // floats from the start of shared memory
    static constexpr int kStride = K + R + 1;  // of [H | S]: threads of a column read from different banks
    static constexpr int kCoordinates = R * kStride;
    static constexpr int kTurned = kCoordinates + R * K;
    static constexpr int kNorms = kTurned + R * R;
    static constexpr int kInsides = kNorms + kThreads;
    static constexpr int kContributions = kInsides + kThreads;
    static constexpr int kBytes = (kContributions + R) * 4;
};

// Calls store(i, j, Σ_l left(i, l) right(l, j)) for all of [R, WIDTH]; a thread has a square of elements, which lie apart so
// that those of neighbouring threads lie together.
template <int R, int WIDTH, class Left, class Right, class Store>
__device__ inline void small_product(int inner, int thread, const Left& left, const Right& right, const Store& store) {
    constexpr int kEach = R * WIDTH / kThreads, kEdge = kEach >= 16 ? 4 : kEach >= 4 ? 2 : 1;
    constexpr int kDown = R / kEdge, kAcross = WIDTH / kEdge;
    for (int square = thread; square < kDown * kAcross; square += kThreads) {
        const int i = square / kAcross, j = square % kAcross;
        float sums[kEdge][kEdge] = {};
        for (int l = 0; l < inner; ++l) {
            float a[kEdge], b[kEdge];
#pragma unroll
            for (int m = 0; m < kEdge; ++m) a[m] = left(i + m * kDown, l), b[m] = right(l, j + m * kAcross);
#pragma unroll
            for (int m = 0; m < kEdge; ++m)
#pragma unroll
                for (int n = 0; n < kEdge; ++n) sums[m][n] += a[m] * b[n];
        }
#pragma unroll
        for (int m = 0; m < kEdge; ++m)
#pragma unroll
            for (int n = 0; n < kEdge; ++n) store(i + m * kDown, j + n * kAcross, sums[m][n]);
    }
}

// Sum of a row's addends, which lie beside each other.
template <int R>
__device__ inline float row_sum(const float* addends, int row) {
    float sum = 0;
    for (int l = 0; l < kThreads / R; ++l) sum += addends[row * (kThreads / R) + l];
    return sum;
}

// gathered [R, stride] = the segment's groups' parts, added in one order.
template <int R, int K>
__device__ inline void add_groups(const float* parts, int groups, float* gathered, int thread) {
    constexpr int kWidth = K + R, kElements = R * kWidth;
    for (int e = 4 * thread; e < kElements; e += 4 * kThreads) {
        float sums[4] = {};
#pragma unroll 4
        for (int group = 0; group < groups; ++group) {
            const float4 part = ptx::load_constant(reinterpret_cast<const float4*>(parts + group * kElements + e));
            sums[0] += part.x, sums[1] += part.y, sums[2] += part.z, sums[3] += part.w;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) gathered[e / kWidth * FinishMemory<R, K>::kStride + e % kWidth + i] = sums[i];
    }
}

// Grid: count.
template <int R, int K>
__global__ void __launch_bounds__(kThreads) finish_segments(const Problem problem, int groups) {
    using Memory = FinishMemory<R, K>;
    constexpr int kStride = Memory::kStride;
    const int thread = threadIdx.x, r = problem.r, k = problem.k;
    const int64_t segment = blockIdx.x;
    auto v = [&](int a, int i) { return a < r && i < r ? ptx::load_constant(problem.basis_p + a * r + i) : 0.0f; };
    auto* gathered = reinterpret_cast<float*>(ptx::shared_memory());
    float* coordinates = gathered + Memory::kCoordinates;      // [R, K]
    float* turned = gathered + Memory::kTurned;                // (S − H Hᵀ) V, [R, R]
    float* norms = gathered + Memory::kNorms;                  // [R, kThreads / R] addends
    float* insides = gathered + Memory::kInsides;              // the same of the variance inside the basis
    float* contributions = gathered + Memory::kContributions;  // [R]

    add_groups<R, K>(problem.parts + segment * groups * R * (K + R), groups, gathered, thread);
    ptx::barrier(kBarrier, kThreads);
    small_product<R, R>(
        K, thread, [&](int i, int l) { return gathered[i * kStride + l]; },
        [&](int l, int j) { return gathered[j * kStride + l]; },
        [&](int i, int j, float product) { gathered[i * kStride + K + j] -= product; });
    small_product<R, K>(
        r, thread, [&](int i, int l) { return v(l, i); }, [&](int l, int j) { return gathered[l * kStride + j]; },
        [&](int i, int j, float product) { coordinates[i * K + j] = product; });
    ptx::barrier(kBarrier, kThreads);
    small_product<R, R>(
        r, thread, [&](int a, int b) { return gathered[a * kStride + K + b]; }, [&](int b, int i) { return v(b, i); },
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
