// H += Σ_t small_t large_tᵀ: the product that both halves of a projection are made of.
#pragma once

#include <algorithm>

#include "vec.h"

namespace bayesrm::BAYESRM_ISA {

#if BAYESRM_WIDTH == 16
constexpr int kMaxRows = 8, kAccumulators = 24;  // of 32 registers; the rest hold a row of `large` and one broadcast
#else
constexpr int kMaxRows = 4, kAccumulators = 12;  // of 16
#endif

constexpr int64_t kTokenBlock = 32;       // that one walk covers
constexpr int64_t kPanel = 12 * kWidth;  // its columns: with the tokens they stay in the first-level cache

// A matrix by rows, of which these kernels know the sizes.
template <class T>
struct Rows {
    T* at;
    int64_t stride;
    Rows from(int64_t row, int64_t column) const { return {at + row * stride + column, stride}; }
};

// What a walk over `large` does with the vectors that it reads. Keep leaves them, in float32 and side by side, for the
// walks of further rows.
struct Forget {
    void operator()(int64_t, int64_t, Vec) const {}
};
struct Keep {
    Rows<float> panel;  // [kTokenBlock, kPanel]
    void operator()(int64_t token, int64_t column, Vec x) const { store(panel.from(token, column).at, x); }
};

// Kept values need no widening; and rows that are a multiple of half a page apart share so few cache sets that, left where
// they are, they would drive each other out.
template <class Q>
inline bool worth_keeping(int64_t stride) {
    return sizeof(Q) < sizeof(float) || stride * sizeof(Q) % 2048 == 0;
}

// Sums start at zero and are added to H at the end, so that a long segment's rounding grows with the root of its
// number of blocks and not of its tokens. `tokens` is at least 1; `next` is fetched into the cache.
template <int ROWS, int VECS, class Q, class Next, class Read>
inline void tile(Rows<const float> small, Rows<const Q> large, Rows<const Next> next, int64_t tokens, Rows<float> h,
                 int64_t column, Read read) {
    Vec sums[ROWS][VECS];
    for (int i = 0; i < ROWS; ++i)
        for (int v = 0; v < VECS; ++v) sums[i][v] = Vec{};
    int64_t t = 0;
    do {
        Vec x[VECS];
        for (int v = 0; v < VECS; ++v) {
            x[v] = load(large.at + v * kWidth);
            __builtin_prefetch(next.at + v * kWidth);
            read(t, column + v * kWidth, x[v]);
        }
        for (int i = 0; i < ROWS; ++i)
            for (int v = 0; v < VECS; ++v) sums[i][v] += small.at[i] * x[v];
        small.at += small.stride;
        large.at += large.stride;
        next.at += next.stride;
    } while (++t < tokens);
    for (int i = 0; i < ROWS; ++i)
        for (int v = 0; v < VECS; ++v) {
            float* at = h.from(i, column + v * kWidth).at;
            store(at, load(at) + sums[i][v]);
        }
}

template <int ROWS, class Q, class Read>
inline void last_tile(Rows<const float> small, Rows<const Q> large, int64_t tokens, Rows<float> h, int64_t column,
                      int64_t columns, Read read) {
    Vec sums[ROWS] = {};
    for (int64_t t = 0; t < tokens; ++t) {
        Vec x = load_first(large.from(t, 0).at, columns);
        read(t, column, x);
        for (int i = 0; i < ROWS; ++i) sums[i] += small.from(t, i).at[0] * x;
    }
    for (int i = 0; i < ROWS; ++i) {
        float* at = h.from(i, column).at;
        store_first(at, load_first(at, columns) + sums[i], columns);
    }
}

// ROWS rows of H over one panel. `ahead(c, step)` says what to fetch while `step` columns from c on are read: a tile is
// a narrow piece of many rows, which no hardware prefetcher expects.
template <int ROWS, class Q, class Ahead, class Read>
inline void walk(Rows<const float> small, Rows<const Q> large, Ahead ahead, int64_t columns, int64_t tokens,
                 Rows<float> h, Read read) {
    constexpr int VECS = kAccumulators / ROWS < 6 ? kAccumulators / ROWS : 6;
    constexpr int64_t kStep = VECS * kWidth;
    int64_t c = 0;
    for (; c + kStep <= columns; c += kStep)
        tile<ROWS, VECS>(small, large.from(0, c), ahead(c, kStep), tokens, h, c, read);
    for (; c + kWidth <= columns; c += kWidth)
        tile<ROWS, 1>(small, large.from(0, c), ahead(c, kWidth), tokens, h, c, read);
    if (c < columns) last_tile<ROWS>(small, large.from(0, c), tokens, h, c, columns - c, read);
}

template <int ROWS, class Q, class Ahead>
inline void walks(Rows<const float> small, int64_t rows, Rows<const Q> large, Ahead ahead, int64_t columns,
                  int64_t tokens, Rows<float> h) {
    int64_t i = 0;
    for (; i + ROWS <= rows; i += ROWS)
        walk<ROWS>(small.from(0, i), large, ahead, columns, tokens, h.from(i, 0), Forget{});
    if constexpr (ROWS > 1)
        if (i < rows) walks<ROWS - 1>(small.from(0, i), rows - i, large, ahead, columns, tokens, h.from(i, 0));
}

// small [tokens, rows], large [tokens, columns], h [rows, columns]. `next` is what will be read after `large`.
template <class Q>
inline void add_outer_product(Rows<const float> small, int64_t rows, Rows<const Q> large, const Q* next,
                              int64_t columns, int64_t tokens, Rows<float> h) {
    alignas(64) float kept[kTokenBlock * kPanel];
    const Rows<float> panel{kept, kPanel};
    const bool keep = worth_keeping<Q>(large.stride);
    for (int64_t t = 0; t < tokens; t += kTokenBlock) {
        const int64_t block = std::min(kTokenBlock, tokens - t);
        const Rows<const float> p = small.from(t, 0);
        const Q* after = t + block < tokens ? large.from(t + block, 0).at : next;
        for (int64_t c = 0; c < columns; c += kPanel) {
            const int64_t width = std::min(kPanel, columns - c);
            const Rows<const Q> q = large.from(t, c);
            const Rows<float> out = h.from(0, c);
            const Rows<const Q> following{c + kPanel < columns ? q.at + kPanel : after, q.stride};
            auto next_tile = [&](int64_t at, int64_t step) {
                return at + 2 * step <= width ? q.from(0, at + step) : following;
            };
            if (rows <= kMaxRows) {
                walks<kMaxRows>(p, rows, q, next_tile, width, block, out);
                continue;
            }
            // The first walk brings in the panel; the others, which find it in the cache, fetch the following one.
            auto next_panel = [&](int64_t at, int64_t) { return following.from(0, at); };
            const Rows<const float> p_rest = p.from(0, kMaxRows);
            const Rows<float> out_rest = out.from(kMaxRows, 0);
            if (keep) {
                walk<kMaxRows>(p, q, next_tile, width, block, out, Keep{panel});
                const Rows<const float> left{kept, kPanel};
                walks<kMaxRows>(p_rest, rows - kMaxRows, left, next_panel, width, block, out_rest);
            } else {
                walk<kMaxRows>(p, q, next_tile, width, block, out, Forget{});
                walks<kMaxRows>(p_rest, rows - kMaxRows, q, next_panel, width, block, out_rest);
            }
        }
    }
}

}  // namespace bayesrm::BAYESRM_ISA
