// Products of the segments' gradients with bases [k, r, d], and their squared norms, in float64 (bayesrm_fast/ops has
// why). A tile of columns of the gradients of a batch of segments is formed in float32; the bases' same columns are read
// once, as they are stored. So q is read once, the bases once a batch, and no gradient is ever whole.
#pragma once

#include <omp.h>

#include "projection.h"
#include "wide.h"

namespace bayesrm::BAYESRM_ISA {

constexpr int64_t kTileFloats = 1 << 18;  // a batch's gradients stay in the second-level cache
constexpr int64_t kMostSegments = 16;     // of a batch: with more, tiles are so narrow that reading q takes longer
constexpr int kSegmentsAtOnce = 4;        // that a basis vector meets while it is in a register
constexpr int kBasesAtOnce = kAccumulators / kSegmentsAtOnce;
constexpr int64_t kBlockDoubles = 512;    // of each of kBasesAtOnce: they stay in the first-level cache

// How the segments are taken together: a pure function of the shape.
struct Batching {
    int64_t segments, columns;
    // Few segments: the bases go by once, at the memory's pace, and widening them is hidden behind it. Many: every element
    // meets several registers of gradients, and is widened once for all of them.
    bool keeps_widened;

    // `range` is how many columns a thread has; its tiles are about as wide as each other.
    Batching(int64_t count, int64_t r, int64_t range) {
        const int64_t batches = std::max<int64_t>((count + kMostSegments - 1) / kMostSegments, 1);
        segments = (count + batches - 1) / batches;
        const int64_t most = std::max<int64_t>(kTileFloats / std::max<int64_t>(segments * r, 1), kPanel);
        const int64_t tiles = std::max<int64_t>((range + most - 1) / most, 1);
        columns = ((range + tiles - 1) / tiles + kWidth - 1) / kWidth * kWidth;
        keeps_widened = segments > kSegmentsAtOnce;
    }
};

// A block of a three-dimensional array: `outer` counts segments or bases, rows are those of a gradient.
template <class T>
struct Block {
    const T* at;
    int64_t outer_stride, row_stride;
    Block from(int64_t outer, int64_t row, int64_t column) const {
        return {at + outer * outer_stride + row * row_stride + column, outer_stride, row_stride};
    }
};

// sums[a, b] += g[a] b[b], lane by lane.
template <int SEGMENTS, int BASES, class B>
inline void add_products(Block<float> g, Block<B> b, int64_t rows, int64_t columns, Wide* sums) {
    Wide totals[SEGMENTS][BASES];
    for (int a = 0; a < SEGMENTS; ++a)
        for (int j = 0; j < BASES; ++j) totals[a][j] = sums[a * BASES + j];
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t c = 0; c + kWideWidth <= columns; c += kWideWidth) {
            Wide x[BASES];
            for (int j = 0; j < BASES; ++j) x[j] = load_wide(b.from(j, i, c).at);
            for (int a = 0; a < SEGMENTS; ++a) {
                const Wide y = load_wide(g.from(a, i, c).at);
                for (int j = 0; j < BASES; ++j) totals[a][j] += y * x[j];
            }
        }
    for (int a = 0; a < SEGMENTS; ++a)
        for (int j = 0; j < BASES; ++j) sums[a * BASES + j] = totals[a][j];
    for (int64_t c = columns / kWideWidth * kWideWidth; c < columns; ++c)
        for (int64_t i = 0; i < rows; ++i)
            for (int a = 0; a < SEGMENTS; ++a)
                for (int j = 0; j < BASES; ++j)
                    sums[a * BASES + j][0] += double(*g.from(a, i, c).at) * widened(*b.from(j, i, c).at);
}

template <int BASES, class B, int SEGMENTS = kSegmentsAtOnce>
inline void add_products_of_segments(Block<float> g, int64_t segments, Block<B> b, int64_t rows, int64_t columns,
                                     Wide* sums) {
    int64_t a = 0;
    for (; a + SEGMENTS <= segments; a += SEGMENTS)
        add_products<SEGMENTS, BASES>(g.from(a, 0, 0), b, rows, columns, sums + a * BASES);
    if constexpr (SEGMENTS > 1)
        if (a < segments)
            add_products_of_segments<BASES, B, SEGMENTS - 1>(g.from(a, 0, 0), segments - a, b, rows, columns,
                                                             sums + a * BASES);
}

template <int BASES, class B>
inline void widen(Block<B> b, int64_t rows, int64_t columns, double* widened_block) {
    for (int j = 0; j < BASES; ++j)
        for (int64_t i = 0; i < rows; ++i) {
            const B* from = b.from(j, i, 0).at;
            double* to = widened_block + (j * rows + i) * columns;
            int64_t c = 0;
            for (; c + kWideWidth <= columns; c += kWideWidth) store_wide(to + c, load_wide(from + c));
            for (; c < columns; ++c) to[c] = widened(from[c]);
        }
}

// What a thread works with: sums of kMostSegments by kBasesAtOnce, and room for as many bases widened.
struct Workspace {
    Wide* sums;
    double* room;
};

// products[a, b] += ⟨g[a], b[b]⟩ for a batch's segments and BASES of the bases.
template <int BASES, class B>
inline void add_products_with(Block<float> g, int64_t segments, Block<B> b, int64_t rows, int64_t columns,
                              bool keeps_widened, Workspace work, Rows<double> products) {
    std::fill(work.sums, work.sums + segments * BASES, Wide{});
    const int64_t step = keeps_widened ? std::min(columns, kBlockDoubles) : columns;
    const int64_t rows_at_once = keeps_widened ? std::max<int64_t>(kBlockDoubles / columns, 1) : rows;
    for (int64_t i = 0; i < rows; i += rows_at_once)
        for (int64_t c = 0; c < columns; c += step) {
            int64_t height = std::min(rows_at_once, rows - i), width = std::min(step, columns - c);
            const Block<float> part = g.from(0, i, c);
            if (keeps_widened) {
                widen<BASES>(b.from(0, i, c), height, width, work.room);
                const Block<double> kept{work.room, height * width, width};
                add_products_of_segments<BASES>(part, segments, kept, height, width, work.sums);
            } else {
                add_products_of_segments<BASES>(part, segments, b.from(0, i, c), height, width, work.sums);
            }
        }
    for (int64_t a = 0; a < segments; ++a)
        for (int j = 0; j < BASES; ++j) *products.from(a, j).at += sum(work.sums[a * BASES + j]);
}

template <class Q, class B>
void ggn_project_of(const Segments& s, const B* bases, int64_t k, double* products, double* squared_norms, int threads) {
    const Batching batching(s.count, s.r, (s.d + threads - 1) / threads);
    const int64_t results = batching.segments * (k + 1);  // products, then squared norms
    const int64_t tile_size = batching.segments * s.r * batching.columns;
    const int64_t p_size = whole_vectors(kTokenBlock * s.r);
    const int64_t sums_size = kMostSegments * kBasesAtOnce * kWidth, room_size = 2 * kBasesAtOnce * kBlockDoubles;
    const int64_t own_size = whole_vectors(tile_size) + p_size + sums_size + room_size + 2 * whole_vectors(results);
    Scratch own(threads * own_size);
    const auto results_of = [&](int member) {
        return reinterpret_cast<double*>(own.data() + member * own_size + own_size - 2 * whole_vectors(results));
    };

#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), team = omp_get_num_threads();
        const Range range(s.d, me, team);
        float* const tile = own.data() + me * own_size;
        float* const p_room = tile + whole_vectors(tile_size);
        float* const sums = p_room + p_size;
        const Workspace work{reinterpret_cast<Wide*>(sums), reinterpret_cast<double*>(sums + sums_size)};
        double* const mine = results_of(me);
        for (int64_t first = 0; first < s.count; first += batching.segments) {
            const int64_t segments = std::min(batching.segments, s.count - first);
            std::fill(mine, mine + results, 0.0);
            for (int64_t column = range.begin; column < range.end; column += batching.columns) {
                const int64_t columns = std::min(batching.columns, range.end - column);
                const Block<float> g{tile, s.r * columns, columns};
                for (int64_t n = 0; n < segments; ++n) {
                    float* const gradient = tile + n * s.r * columns;
                    gradient_tile<Q>(s, first + n, column, columns, gradient, columns, p_room);
                    mine[segments * k + n] += wide_squared_norm(gradient, s.r * columns);
                }
                const Block<B> b{bases + column, s.r * s.d, s.d};
                const bool keeps = batching.keeps_widened;
                int64_t j = 0;
                for (; j + kBasesAtOnce <= k; j += kBasesAtOnce)
                    add_products_with<kBasesAtOnce>(g, segments, b.from(j, 0, 0), s.r, columns, keeps, work, {mine + j, k});
                for (; j < k; ++j)
                    add_products_with<1>(g, segments, b.from(j, 0, 0), s.r, columns, keeps, work, {mine + j, k});
            }
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t n = 0; n < segments; ++n) {
                for (int64_t j = 0; j <= k; ++j) {
                    double total = 0;
                    for (int m = 0; m < team; ++m) total += results_of(m)[j < k ? n * k + j : segments * k + n];
                    (j < k ? products[(first + n) * k + j] : squared_norms[first + n]) = total;
                }
            }
        }
    }
}

template <class Q>
void ggn_project_with(const Segments& s, const void* bases, DType dtype, int64_t k, double* products,
                      double* squared_norms, int threads) {
    if (dtype == DType::float32)
        ggn_project_of<Q>(s, static_cast<const float*>(bases), k, products, squared_norms, threads);
    else if (dtype == DType::bfloat16)
        ggn_project_of<Q>(s, static_cast<const BFloat16*>(bases), k, products, squared_norms, threads);
    else
        ggn_project_of<Q>(s, static_cast<const int8_t*>(bases), k, products, squared_norms, threads);
}

void ggn_project(const Segments& s, const void* bases, DType dtype, int64_t k, double* products, double* squared_norms,
                 int threads) {
    if (s.q_dtype == DType::float32)
        ggn_project_with<float>(s, bases, dtype, k, products, squared_norms, threads);
    else
        ggn_project_with<BFloat16>(s, bases, dtype, k, products, squared_norms, threads);
}

}  // namespace bayesrm::BAYESRM_ISA
