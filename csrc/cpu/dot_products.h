// C_ij = ⟨h_i, u_j⟩ over a range of columns, for every pair of rows.
#pragma once

#include "outer_product.h"

namespace bayesrm::BAYESRM_ISA {

template <int ROWS, int OTHERS>
inline void dot_tile(const float* h, int64_t h_stride, const float* u, int64_t u_stride, int64_t columns, float* c,
                     int64_t c_stride) {
    Vec sums[ROWS][OTHERS] = {};
    int64_t at = 0;
    for (; at + kWidth <= columns; at += kWidth) {
        Vec x[OTHERS];
        for (int j = 0; j < OTHERS; ++j) x[j] = load(u + j * u_stride + at);
        for (int i = 0; i < ROWS; ++i) {
            Vec y = load(h + i * h_stride + at);
            for (int j = 0; j < OTHERS; ++j) sums[i][j] += y * x[j];
        }
    }
    if (at < columns)
        for (int i = 0; i < ROWS; ++i) {
            Vec y = load_first(h + i * h_stride + at, columns - at);
            for (int j = 0; j < OTHERS; ++j) sums[i][j] += y * load_first(u + j * u_stride + at, columns - at);
        }
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < OTHERS; ++j) c[i * c_stride + j] = sum(sums[i][j]);
}

// h [rows, columns], u [others, columns], c [rows, others].
template <int ROWS = kMaxRows>
inline void dot_products(const float* h, int64_t h_stride, int64_t rows, const float* u, int64_t u_stride,
                         int64_t others, int64_t columns, float* c, int64_t c_stride) {
    constexpr int OTHERS = kAccumulators / ROWS < 4 ? kAccumulators / ROWS : 4;
    int64_t i = 0;
    for (; i + ROWS <= rows; i += ROWS) {
        int64_t j = 0;
        for (; j + OTHERS <= others; j += OTHERS)
            dot_tile<ROWS, OTHERS>(h + i * h_stride, h_stride, u + j * u_stride, u_stride, columns, c + i * c_stride + j,
                                   c_stride);
        for (; j < others; ++j)
            dot_tile<ROWS, 1>(h + i * h_stride, h_stride, u + j * u_stride, u_stride, columns, c + i * c_stride + j,
                              c_stride);
    }
    if constexpr (ROWS > 1)
        if (i < rows)
            dot_products<ROWS - 1>(h + i * h_stride, h_stride, rows - i, u, u_stride, others, columns, c + i * c_stride,
                                   c_stride);
}

inline float squared_norm(const float* x, int64_t count) {
    Vec sums = {};
    int64_t at = 0;
    for (; at + kWidth <= count; at += kWidth) {
        Vec y = load(x + at);
        sums += y * y;
    }
    Vec y = load_first(x + at, count - at);
    return sum(sums + y * y);
}

}  // namespace bayesrm::BAYESRM_ISA
