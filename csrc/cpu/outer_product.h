// H += Σ_t small_t large_tᵀ: the product that both halves of a projection are made of.
#pragma once

#include "vec.h"

namespace bayesrm::BAYESRM_ISA {

#if BAYESRM_WIDTH == 16
constexpr int kMaxRows = 8, kAccumulators = 24;  // of 32 registers; the rest hold a row of `large` and one broadcast
#else
constexpr int kMaxRows = 4, kAccumulators = 12;  // of 16
#endif

// Sums start at zero and are added to H at the end, so that a long segment's rounding grows with the root of its
// number of blocks and not of its tokens. `tokens` is at least 1.
template <int ROWS, int VECS, class Q>
inline void tile(const float* small, int64_t small_stride, const Q* large, const Q* next, int64_t large_stride,
                 int64_t tokens, float* h, int64_t h_stride) {
    Vec sums[ROWS][VECS];
    for (int i = 0; i < ROWS; ++i)
        for (int v = 0; v < VECS; ++v) sums[i][v] = Vec{};
    do {
        Vec x[VECS];
        for (int v = 0; v < VECS; ++v) {
            x[v] = load(large + v * kWidth);
            // The next tile is a narrow piece of many rows, which no hardware prefetcher expects.
            __builtin_prefetch(next + v * kWidth);
        }
        for (int i = 0; i < ROWS; ++i)
            for (int v = 0; v < VECS; ++v) sums[i][v] += small[i] * x[v];
        small += small_stride;
        large += large_stride;
        next += large_stride;
    } while (--tokens > 0);
    for (int i = 0; i < ROWS; ++i)
        for (int v = 0; v < VECS; ++v) {
            float* at = h + i * h_stride + v * kWidth;
            store(at, load(at) + sums[i][v]);
        }
}

template <int ROWS, class Q>
inline void last_tile(const float* small, int64_t small_stride, const Q* large, int64_t large_stride, int64_t tokens,
                      float* h, int64_t h_stride, int64_t columns) {
    Vec sums[ROWS] = {};
    for (int64_t t = 0; t < tokens; ++t) {
        Vec x = load_first(large + t * large_stride, columns);
        for (int i = 0; i < ROWS; ++i) sums[i] += small[t * small_stride + i] * x;
    }
    for (int i = 0; i < ROWS; ++i) {
        float* at = h + i * h_stride;
        store_first(at, load_first(at, columns) + sums[i], columns);
    }
}

template <int ROWS, class Q>
inline void rows_of_outer_product(const float* small, int64_t small_stride, const Q* large, const Q* next,
                                  int64_t large_stride, int64_t tokens, float* h, int64_t h_stride, int64_t columns) {
    constexpr int VECS = kAccumulators / ROWS < 6 ? kAccumulators / ROWS : 6;
    constexpr int64_t kStep = VECS * kWidth;
    int64_t c = 0;
    for (; c + kStep <= columns; c += kStep)
        tile<ROWS, VECS>(small, small_stride, large + c, c + 2 * kStep <= columns ? large + c + kStep : next,
                         large_stride, tokens, h + c, h_stride);
    for (; c + kWidth <= columns; c += kWidth)
        tile<ROWS, 1>(small, small_stride, large + c, large + c + kWidth, large_stride, tokens, h + c, h_stride);
    if (c < columns)
        last_tile<ROWS>(small, small_stride, large + c, large_stride, tokens, h + c, h_stride, columns - c);
}

template <int ROWS, class Q>
inline void panel_of_outer_product(const float* small, int64_t small_stride, int64_t rows, const Q* large, const Q* next,
                                   int64_t large_stride, int64_t columns, int64_t tokens, float* h, int64_t h_stride) {
    int64_t i = 0;
    for (; i + ROWS <= rows; i += ROWS)
        rows_of_outer_product<ROWS>(small + i, small_stride, large, next, large_stride, tokens, h + i * h_stride,
                                    h_stride, columns);
    if constexpr (ROWS > 1)
        if (i < rows)
            panel_of_outer_product<ROWS - 1>(small + i, small_stride, rows - i, large, next, large_stride, columns,
                                             tokens, h + i * h_stride, h_stride);
}

// small [tokens, rows], large [tokens, columns], h [rows, columns], each with the stride of its rows. `next` is what will
// be read after `large`.
template <class Q>
inline void add_outer_product(const float* small, int64_t small_stride, int64_t rows, const Q* large, const Q* next,
                              int64_t large_stride, int64_t columns, int64_t tokens, float* h, int64_t h_stride) {
    if (tokens <= 0) return;
    // A panel of `large` stays in the first-level cache while all rows walk over it.
    constexpr int64_t kPanel = 12 * kWidth;
    for (int64_t c = 0; c < columns; c += kPanel)
        panel_of_outer_product<kMaxRows>(small, small_stride, rows, large + c,
                                         c + kPanel < columns ? large + c + kPanel : next, large_stride,
                                         columns - c < kPanel ? columns - c : kPanel, tokens, h + c, h_stride);
}

}  // namespace bayesrm::BAYESRM_ISA
