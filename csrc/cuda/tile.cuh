// One tile of a segment's gradient: summed over tokens, split into halves, multiplied by U and by itself. Both kernels run
// this; they differ in how q comes into shared memory and how the blocks' sums come together.
//
// The part outside span(U) comes from S − H Hᵀ with S = G Gᵀ and H = G U, before V turns either: a difference, so its terms
// must keep more digits than bfloat16 or tf32 products have. Each product is three or four of bfloat16 halves (2⁻¹⁸), and
// each 16 columns' sum is added in a vector unit: a matrix unit truncates what it accumulates, and over thousands of columns
// that bias alone would be larger than the difference. What is left is off by some 10⁻⁷ of ‖G‖² (10⁻⁶ at d = 16); a q in
// bfloat16 cannot say more, for its own rounding (2⁻⁹) puts 10⁻⁶ of ‖G‖² outside any subspace.
#pragma once

#include <algorithm>

#include "device.cuh"
#include "kernels.h"

namespace bayesrm::cuda {

using ptx::SharedAddress;

constexpr int kWarps = 8;  // that compute
constexpr int kThreads = 32 * kWarps;
constexpr int kColumns = 256;       // of a tile: 32 a warp
constexpr int kColumnsPerBox = 64;  // 128 bytes: a row of the copy engine's widest swizzle
constexpr int kBarrier = 1;         // of the computing warps

// R rows of the gradient, K columns of U, both padded.
template <int R, int K>
struct Shape {
    static constexpr int kRowTiles = R / 16;
    static constexpr int kWidth = K + R;  // of [H | S]
    // The second product's output, [R, K + R]: a warp has 16 rows, half of the columns and a share of the summands.
    static constexpr int kShares = kWarps / 2 / kRowTiles;
    static constexpr int kTiles = kWidth / 16;
    static constexpr int kHalvesBytes = 2 * R * kColumns * 2;
    static constexpr int kSumsBytes = kShares * R * kWidth * 4;
    static constexpr int kScratchBytes = std::max(kHalvesBytes, kSumsBytes);  // never alive together
};

struct Lane {
    int warp, lane;
    // Of the 8 × 8 matrix whose row this lane addresses in ldmatrix, and that row.
    __device__ int matrix() const { return lane / 8; }
    __device__ int row() const { return lane % 8; }
    // Of this lane's elements in an accumulator.
    __device__ int upper() const { return lane / 4; }
    __device__ int left() const { return lane % 4 * 2; }
};

// 16-byte chunks are permuted within a row so that eight rows of a column lie in different banks: the pattern of the copy
// engine's swizzles of 32, 64 and 128 bytes.
template <int CHUNKS>
__device__ inline int swizzled(int row, int chunk) {
    constexpr int kPeriod = CHUNKS >= 8 ? 8 : CHUNKS;
    return chunk ^ (row / (8 / kPeriod) % kPeriod);
}

// Bytes from a stage's start: q as boxes [TOKENS, 64].
template <int TOKENS>
__device__ inline int q_box(int token, int column) {
    return (column / kColumnsPerBox * TOKENS + token) * (kColumnsPerBox * 2);
}

template <int TOKENS>
__device__ inline int q_offset(int token, int column) {
    return q_box<TOKENS>(token, column) + swizzled<8>(token, column % kColumnsPerBox / 8) * 16;
}

// p as [TOKENS, R].
template <int R>
__device__ inline int p_offset(int token, int chunk) {
    return token * R * 2 + swizzled<R / 8>(token, chunk) * 16;
}

template <class AnyProblem>
__device__ inline int p_parts(const AnyProblem& problem) { return problem.p_low == nullptr ? 1 : 2; }

// Tokens [first, end) of p, and after them of its low part, into a stage of TOKENS; zeros beyond p's rows and columns.
template <int R, int TOKENS, class AnyProblem>
__device__ inline void copy_p(const AnyProblem& problem, SharedAddress to, int64_t first, int64_t end, int thread,
                              int threads) {
    constexpr int kChunks = TOKENS * R / 8;
    for (int e = thread; e < p_parts(problem) * kChunks; e += threads) {
        const auto* from = static_cast<const uint16_t*>(e < kChunks ? problem.p : problem.p_low);
        const int token = e % kChunks / (R / 8), chunk = e % (R / 8);
        const bool live = first + token < end && chunk * 8 < problem.p_stride;
        ptx::copy_async(to + e / kChunks * TOKENS * R * 2 + p_offset<R>(token, chunk),
                        live ? from + (first + token) * problem.p_stride + chunk * 8 : from, live);
    }
}

// The gradient's halves as [R, 256], the lower after the upper ones.
template <int R>
__device__ inline int half_offset(int half, int row, int chunk) {
    return ((half * R + row) * (kColumns / 8) + (chunk ^ (row % 8))) * 16;
}

// Of two bfloat16 tokens in a register, keeps those that are among the next `count`.
__device__ inline uint32_t first_tokens(uint32_t pair, int count) {
    return count >= 2 ? pair : count == 1 ? pair & 0xffffu : 0u;
}

// gradient [R, 32 of a warp] += pᵀ q over the first `count` tokens of a stage; `parts` of p follow each other.
template <int R, int TOKENS>
__device__ inline void add_tokens(float (&gradient)[R / 16][4][4], SharedAddress p, int parts, SharedAddress q, int count,
                                  Lane at) {
#pragma unroll
    for (int first = 0; first < TOKENS; first += 16) {
        if (first >= count) break;
        uint32_t right[2][4];
#pragma unroll
        for (int j = 0; j < 2; ++j)
            ptx::ldmatrix_transposed(right[j], q + q_offset<TOKENS>(first + at.matrix() % 2 * 8 + at.row(),
                                                                    at.warp * 32 + j * 16 + at.matrix() / 2 * 8));
        if (first + 16 > count) {
            // What follows is another segment's, and zero times its infinity would be NaN here.
#pragma unroll
            for (int j = 0; j < 2; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    right[j][i] = first_tokens(right[j][i], count - first - i % 2 * 8 - at.left());
        }
#pragma unroll 1
        for (int part = 0; part < parts; ++part)
#pragma unroll
            for (int m = 0; m < R / 16; ++m) {
                uint32_t left[4];
                ptx::ldmatrix_transposed(left, p + part * TOKENS * R * 2 +
                                                   p_offset<R>(first + at.matrix() / 2 * 8 + at.row(),
                                                               2 * m + at.matrix() % 2));
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    ptx::mma_bf16(gradient[m][j], left, right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
            }
    }
}

struct Halves {
    uint32_t high, low;
};

// A pair of floats as the sum of two bfloat16 pairs, each rounded to nearest.
__device__ inline Halves halves(float first, float second) {
    const uint32_t high = ptx::pack_bf16(first, second);
    return {high, ptx::pack_bf16(first - ptx::as_float(high << 16), second - ptx::as_float(high & 0xffff0000u))};
}

template <int R>
__device__ inline void store_halves(const float (&gradient)[R / 16][4][4], unsigned char* to, Lane at) {
#pragma unroll
    for (int m = 0; m < R / 16; ++m)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int lower = 0; lower < 2; ++lower) {
                const Halves pair = halves(gradient[m][j][2 * lower], gradient[m][j][2 * lower + 1]);
                const int row = m * 16 + lower * 8 + at.upper(), chunk = at.warp * 4 + j, within = at.left() * 2;
                *reinterpret_cast<uint32_t*>(to + half_offset<R>(0, row, chunk) + within) = pair.high;
                *reinterpret_cast<uint32_t*>(to + half_offset<R>(1, row, chunk) + within) = pair.low;
            }
}

// Where a warp's part of [H | S] is.
template <int R, int K>
struct Part {
    using S = Shape<R, K>;
    int row_tile, first_tile, share;
    __device__ explicit Part(int warp)
        : row_tile(warp % S::kRowTiles),
          first_tile(warp / S::kRowTiles % 2 * S::kTiles),
          share(warp / S::kRowTiles / 2) {}
};

// U at 8 of its columns and 16 of its rows, as the second operand of a product.
struct BasisPart {
    float2 upper, lower;
};

__device__ inline BasisPart load_basis(const Problem& problem, int j, int column) {
    const float* from = problem.basis_q_t + int64_t(j) * problem.d + column;
    BasisPart part = {{0, 0}, {0, 0}};
    // Columns come in eights, so that a pair is inside or outside as a whole.
    if (j < problem.k && column < problem.d) part.upper = ptx::load_constant(reinterpret_cast<const float2*>(from));
    if (j < problem.k && column + 8 < problem.d)
        part.lower = ptx::load_constant(reinterpret_cast<const float2*>(from + 8));
    return part;
}

// All of a warp's at once: they come from the second-level cache.
template <int R, int K>
__device__ inline void load_bases(BasisPart (&basis)[Shape<R, K>::kTiles], const Problem& problem, int first_tile, int column,
                                  Lane at) {
#pragma unroll
    for (int t = 0; t < Shape<R, K>::kTiles; ++t)
        if (first_tile + t < K / 8)
            basis[t] = load_basis(problem, (first_tile + t) * 8 + at.upper(), column + at.left());
}

// sums [16, half of K + R] += the warp's share of G [U | Gᵀ], over one tile.
template <int R, int K>
__device__ inline void add_products(float (&sums)[Shape<R, K>::kTiles][4], SharedAddress gradient, const Problem& problem,
                                    int first_column, Lane at) {
    using S = Shape<R, K>;
    const Part<R, K> part(at.warp);
    constexpr bool kAhead = S::kTiles < 8;  // with more the next step's would not fit into registers
    BasisPart basis[S::kTiles], next[S::kTiles];
    if (kAhead) load_bases<R, K>(next, problem, part.first_tile, first_column + part.share * 16, at);
#pragma unroll 1
    for (int step = part.share; step < kColumns / 16; step += S::kShares) {
        if (first_column + step * 16 >= problem.d) break;
        if (!kAhead) load_bases<R, K>(next, problem, part.first_tile, first_column + step * 16, at);
#pragma unroll
        for (int t = 0; t < S::kTiles; ++t) basis[t] = next[t];
        if (kAhead) load_bases<R, K>(next, problem, part.first_tile, first_column + (step + S::kShares) * 16, at);
        uint32_t left[2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half)
            ptx::ldmatrix(left[half], gradient + half_offset<R>(half, part.row_tile * 16 + at.matrix() % 2 * 8 + at.row(),
                                                                step * 2 + at.matrix() / 2));
#pragma unroll
        for (int t = 0; t < S::kTiles; ++t) {
            const int tile = part.first_tile + t;
            uint32_t right[4];  // the upper and lower 8 summands, then the same of the lower halves
            if (tile < K / 8) {
                const Halves upper = halves(basis[t].upper.x, basis[t].upper.y);
                const Halves lower = halves(basis[t].lower.x, basis[t].lower.y);
                right[0] = upper.high, right[1] = lower.high, right[2] = upper.low, right[3] = lower.low;
            } else {
                ptx::ldmatrix(right, gradient + half_offset<R>(at.matrix() / 2, (tile - K / 8) * 8 + at.row(),
                                                               step * 2 + at.matrix() % 2));
            }
            float product[4] = {0, 0, 0, 0};
            // Squares of lower halves are all positive: 10⁻⁶ of S, and H has nothing like it.
            if (tile >= K / 8) ptx::mma_bf16(product, left[1], right[2], right[3]);
            ptx::mma_bf16(product, left[1], right[0], right[1]);
            ptx::mma_bf16(product, left[0], right[2], right[3]);
            ptx::mma_bf16(product, left[0], right[0], right[1]);
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[t][i] += product[i];
        }
    }
}

// sums += G [U | Gᵀ] of a finished tile.
template <int R, int K>
__device__ inline void add_tile(float (&sums)[Shape<R, K>::kTiles][4], const float (&gradient)[R / 16][4][4],
                                unsigned char* halves, SharedAddress halves_address, const Problem& problem, int column,
                                Lane at) {
    ptx::barrier(kBarrier, kThreads);  // all are done with the tile before, or with what else was there
    store_halves<R>(gradient, halves, at);
    ptx::barrier(kBarrier, kThreads);
    add_products<R, K>(sums, halves_address, problem, column, at);
}

// [H | S] of this block's tiles, [R, K + R], from the warps' sums; `scratch` holds the shares on the way.
template <int R, int K>
__device__ inline void gather_sums(const float (&sums)[Shape<R, K>::kTiles][4], float* scratch, float* part_of_all, Lane at) {
    using S = Shape<R, K>;
    const Part<R, K> part(at.warp);
    ptx::barrier(kBarrier, kThreads);  // all are done with the halves
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = part.row_tile * 16 + i / 2 * 8 + at.upper();
            const int column = (part.first_tile + t) * 8 + at.left() + i % 2;
            scratch[(part.share * R + row) * S::kWidth + column] = sums[t][i];
        }
    ptx::barrier(kBarrier, kThreads);
    for (int e = at.warp * 32 + at.lane; e < R * S::kWidth; e += kThreads) {
        float sum = 0;
        for (int share = 0; share < S::kShares; ++share) sum += scratch[share * R * S::kWidth + e];
        part_of_all[e] = sum;
    }
}

}  // namespace bayesrm::cuda
