// Products of the segments' gradients with bases [k, r, d], and their squared norms, in float64 (bayesrm_fast/ops has
// why). A tile of columns of the gradients of a batch of segments is formed in float32; the bases' same columns are read
// once, as they are stored. So q is read once, the bases once a batch, and no gradient is ever whole.
#pragma once

#include <omp.h>

#include "projection.h"
#include "wide.h"

namespace bayesrm::BAYESRM_ISA {

constexpr int64_t kTileFloats = 1 << 18;  // a batch's gradients stay in the second-level cache
constexpr int64_t kMostSegments = 64;     // of a batch
constexpr int kSegmentsAtOnce = 4;        // that a basis vector meets while it is in a register
constexpr int kBasesAtOnce = kAccumulators / kSegmentsAtOnce;
constexpr int64_t kBlockDoubles = 512;    // of each of kBasesAtOnce: they stay in the first-level cache

// How the segments are taken together: a pure function of the shape.
struct Batching {
    int64_t segments, columns;
    // Few segments: the bases go by once, at the memory's pace, and widening them is hidden behind it. Many: every element
    // meets several registers of gradients, and is widened once for all of them.
    bool keeps_widened;

    Batching(int64_t count, int64_t r, int64_t d) {
        const int64_t most = std::clamp<int64_t>(kTileFloats / (std::max<int64_t>(r, 1) * kPanel), 1, kMostSegments);
        const int64_t batches = std::max<int64_t>((count + most - 1) / most, 1);
        segments = (count + batches - 1) / batches;
        const int64_t panels = kTileFloats / (std::max<int64_t>(segments * r, 1) * kPanel);
        columns = std::min(std::max<int64_t>(panels, 1) * kPanel, whole_vectors(d));
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

// products[a, b] += Σ over rows and columns of g[a] b[b].
template <int SEGMENTS, int BASES, class B>
inline void add_products(Block<float> g, Block<B> b, int64_t rows, int64_t columns, Rows<double> products) {
    Wide sums[SEGMENTS][BASES] = {};
    for (int64_t i = 0; i < rows; ++i) {
        int64_t c = 0;
        for (; c + kWideWidth <= columns; c += kWideWidth) {
            Wide x[BASES];
            for (int j = 0; j < BASES; ++j) x[j] = load_wide(b.from(j, i, c).at);
            for (int a = 0; a < SEGMENTS; ++a) {
                const Wide y = load_wide(g.from(a, i, c).at);
                for (int j = 0; j < BASES; ++j) sums[a][j] += y * x[j];
            }
        }
        if (c < columns)
            for (int a = 0; a < SEGMENTS; ++a) {
                const Wide y = load_wide_first(g.from(a, i, c).at, columns - c);
                for (int j = 0; j < BASES; ++j) sums[a][j] += y * load_wide_first(b.from(j, i, c).at, columns - c);
            }
    }
    for (int a = 0; a < SEGMENTS; ++a)
        for (int j = 0; j < BASES; ++j) *products.from(a, j).at += sum(sums[a][j]);
}

template <int BASES, class B, int SEGMENTS = kSegmentsAtOnce>
inline void add_products_of_segments(Block<float> g, int64_t segments, Block<B> b, int64_t rows, int64_t columns,
                                     Rows<double> products) {
    int64_t a = 0;
    for (; a + SEGMENTS <= segments; a += SEGMENTS)
        add_products<SEGMENTS, BASES>(g.from(a, 0, 0), b, rows, columns, products.from(a, 0));
    if constexpr (SEGMENTS > 1)
        if (a < segments)
            add_products_of_segments<BASES, B, SEGMENTS - 1>(g.from(a, 0, 0), segments - a, b, rows, columns,
                                                             products.from(a, 0));
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

// The products of a batch's segments with BASES of the bases; `room` is where those are widened, or null.
template <int BASES, class B>
inline void add_products_with(Block<float> g, int64_t segments, Block<B> b, int64_t rows, int64_t columns, double* room,
                              Rows<double> products) {
    if (room == nullptr) {
        add_products_of_segments<BASES>(g, segments, b, rows, columns, products);
        return;
    }
    const int64_t step = std::min(columns, kBlockDoubles), rows_at_once = std::max<int64_t>(kBlockDoubles / columns, 1);
    for (int64_t i = 0; i < rows; i += rows_at_once)
        for (int64_t c = 0; c < columns; c += step) {
            const int64_t height = std::min(rows_at_once, rows - i), width = std::min(step, columns - c);
            widen<BASES>(b.from(0, i, c), height, width, room);
            add_products_of_segments<BASES>(g.from(0, i, c), segments, Block<double>{room, height * width, width}, height,
                                            width, products);
        }
}

template <class Q, class B>
void ggn_project_of(const Segments& s, const B* bases, int64_t k, double* products, double* squared_norms, int threads) {
    const Batching batching(s.count, s.r, s.d);
    const int64_t results = batching.segments * (k + 1);  // products, then squared norms
    const int64_t tile_size = batching.segments * s.r * batching.columns;
    const int64_t room_size = kBasesAtOnce * kBlockDoubles;
    const int64_t p_size = whole_vectors(kTokenBlock * s.r);
    const int64_t own_size = whole_vectors(tile_size) + p_size + 2 * room_size + 2 * whole_vectors(results);
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
        double* const basis_room = reinterpret_cast<double*>(p_room + p_size);
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
                double* const room = batching.keeps_widened ? basis_room : nullptr;
                int64_t j = 0;
                for (; j + kBasesAtOnce <= k; j += kBasesAtOnce)
                    add_products_with<kBasesAtOnce>(g, segments, b.from(j, 0, 0), s.r, columns, room, {mine + j, k});
                for (; j < k; ++j) add_products_with<1>(g, segments, b.from(j, 0, 0), s.r, columns, room, {mine + j, k});
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
    else
        ggn_project_of<Q>(s, static_cast<const BFloat16*>(bases), k, products, squared_norms, threads);
}

void ggn_project(const Segments& s, const void* bases, DType dtype, int64_t k, double* products, double* squared_norms,
                 int threads) {
    if (s.q_dtype == DType::float32)
        ggn_project_with<float>(s, bases, dtype, k, products, squared_norms, threads);
    else
        ggn_project_with<BFloat16>(s, bases, dtype, k, products, squared_norms, threads);
}

}  // namespace bayesrm::BAYESRM_ISA
