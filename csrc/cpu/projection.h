// One walk over the segments that kron_project and kron_variance share; they differ in what they do with C and the
// rows' residual norms.
#pragma once

#include <omp.h>

#include <algorithm>

#include "dot_products.h"
#include "kernels.h"

namespace bayesrm::BAYESRM_ISA {

constexpr int64_t kScratchFloats = 1 << 18;  // H of one segment stays in the second-level cache

// The columns first..first + rows of V [r, r], each row filled up to whole vectors.
inline void pad_columns(const float* v, int64_t r, int64_t first, int64_t rows, float* padded) {
    const int64_t width = whole_vectors(rows);
    std::fill(padded, padded + r * width, 0.0f);
    for (int64_t l = 0; l < r; ++l)
        for (int64_t i = 0; i < rows; ++i) padded[l * width + i] = v[l * r + first + i];
}

// rotated [tokens, width] = p [tokens, r] v [r, width], width in whole vectors. Writes up to kTogether - 1 rows more.
inline void rotate(const float* p, int64_t tokens, int64_t r, const float* v, int64_t width, float* rotated) {
    constexpr int kTogether = 4;
    static_assert(kTokenBlock % kTogether == 0);
    for (int64_t t = 0; t < tokens; t += kTogether)
        for (int64_t c = 0; c < width; c += kWidth) {
            Vec sums[kTogether] = {};
            const float* rows[kTogether];
            for (int m = 0; m < kTogether; ++m) rows[m] = p + std::min(t + m, tokens - 1) * r;
            for (int64_t l = 0; l < r; ++l) {
                const Vec x = load(v + l * width + c);
                for (int m = 0; m < kTogether; ++m) sums[m] += rows[m][l] * x;
            }
            for (int m = 0; m < kTogether; ++m) store(rotated + (t + m) * width + c, sums[m]);
        }
}

// Elements `first` .. `first` + `count` of p in float32: where they are, or in `room`.
inline const float* float32_of(const Segments& s, int64_t first, int64_t count, float* room) {
    if (s.p_dtype == DType::float32) return static_cast<const float*>(s.p) + first;
    const BFloat16* p = static_cast<const BFloat16*>(s.p) + first;
    for (int64_t i = 0; i < count; ++i) room[i] = widened(p[i]);
    return room;
}

// h [r, columns] = G of segment n at the columns from `column` on. `room` holds kTokenBlock * r floats.
template <class Q>
inline void gradient_tile(const Segments& s, int64_t n, int64_t column, int64_t columns, float* h, int64_t h_stride,
                          float* room) {
    for (int64_t i = 0; i < s.r; ++i) std::fill(h + i * h_stride, h + i * h_stride + columns, 0.0f);
    for (int64_t t = s.offsets[n]; t < s.offsets[n + 1]; t += kTokenBlock) {
        const int64_t tokens = std::min(kTokenBlock, s.offsets[n + 1] - t);
        const Q* q = static_cast<const Q*>(s.q) + t * s.d + column;
        add_outer_product({float32_of(s, t * s.r, tokens * s.r, room), s.r}, s.r, Rows<const Q>{q, s.d},
                          q + kTokenBlock * s.d, columns, tokens, {h, h_stride});
    }
}

inline int64_t small_scratch(int64_t r, int64_t rows) { return kTokenBlock * (r + whole_vectors(rows)); }

// h [rows, columns] = the rows of VᵀG of segment n that `v`, from pad_columns, picks, at the columns from `column` on.
// `scratch` holds small_scratch(r, rows) floats.
template <class Q>
inline void gradient_rows(const Segments& s, int64_t n, const float* v, int64_t rows, int64_t column, int64_t columns,
                          float* h, int64_t h_stride, float* scratch) {
    for (int64_t i = 0; i < rows; ++i) std::fill(h + i * h_stride, h + i * h_stride + columns, 0.0f);
    const int64_t width = whole_vectors(rows);
    float *const rotated = scratch, *const room = rotated + kTokenBlock * width;
    for (int64_t t = s.offsets[n]; t < s.offsets[n + 1]; t += kTokenBlock) {
        const int64_t tokens = std::min(kTokenBlock, s.offsets[n + 1] - t);
        rotate(float32_of(s, t * s.r, tokens * s.r, room), tokens, s.r, v, width, rotated);
        const Q* q = static_cast<const Q*>(s.q) + t * s.d + column;
        add_outer_product({rotated, width}, rows, Rows<const Q>{q, s.d}, q + kTokenBlock * s.d, columns, tokens,
                          {h, h_stride});
    }
}

// Members of a team share a segment, each a range of its columns.
struct Range {
    int64_t begin, end;
    Range(int64_t d, int member, int team) {
        const int64_t blocks = (d + kWidth - 1) / kWidth;
        begin = std::min(d, blocks * member / team * kWidth);
        end = std::min(d, blocks * (member + 1) / team * kWidth);
    }
};

// Every thread has segments of its own where there are enough; else all threads share each segment.
inline bool share_segments(const Segments& s, int threads) { return threads > 1 && s.count < 4 * threads; }

// Calls sink(n, i, minus_c, stride, outside) for every segment n and row i: −C_ij is minus_c[j * stride], and `outside` the
// squared norm of the row's part outside span(U). All rows of a segment come from one thread, in their order.
template <class Q, class Sink>
void project(const Segments& s, const Basis& basis, int threads, const Sink& sink) {
    const int64_t rows_at_once =
        std::min(s.r, std::max<int64_t>(kScratchFloats / std::max<int64_t>(s.d, 1) / kMaxRows, 1) * kMaxRows);
    const int64_t k = basis.k;
    const bool shared = share_segments(s, threads);
    // All scratch memory is here, before any thread starts: an exception could not leave a parallel region.
    const int64_t width = whole_vectors(rows_at_once), part_size = rows_at_once * k;
    const int64_t h_size = rows_at_once * whole_vectors(s.d);
    const int64_t small_size = small_scratch(s.r, rows_at_once);
    const int64_t own_size = h_size + small_size + s.r * width + whole_vectors(part_size);
    Scratch own(threads * own_size), shared_parts(threads * part_size), shared_norms(threads * rows_at_once);
    float *parts = shared_parts.data(), *norms = shared_norms.data();

#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num(), team = shared ? omp_get_num_threads() : 1;
        const Range range(s.d, shared ? me : 0, team);
        const int64_t columns = range.end - range.begin;
        const int64_t h_stride = whole_vectors(columns);
        float* const h = own.data() + me * own_size;
        float* const scratch = h + h_size;
        float* const padded = scratch + small_size;
        float* const minus_c = padded + s.r * width;
        float* part = parts + me * part_size;
        float* norm = norms + me * rows_at_once;
        const int first_member = shared ? 0 : me;

        auto one_segment = [&](int64_t n) {
            for (int64_t first = 0; first < s.r; first += rows_at_once) {
                const int64_t rows = std::min(rows_at_once, s.r - first);
                const float* u = basis.basis_q_t + range.begin;
                pad_columns(basis.basis_p, s.r, first, rows, padded);
                gradient_rows<Q>(s, n, padded, rows, range.begin, columns, h, h_stride, scratch);
                dot_products(h, h_stride, rows, u, s.d, k, columns, part, k);
                if (shared) {
#pragma omp barrier
                }
                for (int64_t i = 0; i < rows; ++i)
                    for (int64_t j = 0; j < k; ++j) {
                        float c = 0;
                        for (int m = 0; m < team; ++m) c += parts[((first_member + m) * rows_at_once + i) * k + j];
                        minus_c[j * rows + i] = -c;
                    }
                // The part outside span(U) is formed before it is squared: the difference of the two squared norms has
                // no digits left where a gradient lies almost inside, and there its weight is the largest.
                add_outer_product({minus_c, rows}, rows, Rows<const float>{u, s.d}, u, columns, k, {h, h_stride});
                for (int64_t i = 0; i < rows; ++i) norm[i] = squared_norm(h + i * h_stride, columns);
                if (shared) {
#pragma omp barrier
                }
                if (!shared || me == 0)
                    for (int64_t i = 0; i < rows; ++i) {
                        float outside = 0;
                        for (int m = 0; m < team; ++m) outside += norms[(first_member + m) * rows_at_once + i];
                        sink(n, first + i, minus_c + i, rows, outside);
                    }
                if (shared) {
#pragma omp barrier
                }
            }
        };

        if (shared) {
            for (int64_t n = 0; n < s.count; ++n) one_segment(n);
        } else {
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < s.count; ++i) one_segment(s.order[i]);
        }
    }
}

}  // namespace bayesrm::BAYESRM_ISA
