// What every instruction set offers: plain functions on pointers, without any framework's header.
#pragma once

#include <cstdint>

namespace bayesrm {

enum class DType : int { float32 = 0, bfloat16 = 1, int8 = 2 };  // int8: of ggn_project's bases alone

// Tokens of all sequences, row-major: p [tokens, r], q [tokens, d]; segment n is offsets[n] <= t < offsets[n + 1].
// `order` is the order in which threads take the segments: the longest first, so that none is left over at the end.
struct Segments {
    const void* p;
    const void* q;
    const int64_t* offsets;
    const int64_t* order;
    int64_t count, r, d;
    DType p_dtype, q_dtype;
};

// basis_p [r, r]; basis_q_t [k, d], the transposed basis of the large side.
struct Basis {
    const float* basis_p;
    const float* basis_q_t;
    int64_t k;
};

struct Kernels {
    const char* name;
    // gradients [count, r, d]
    void (*segment_outer)(const Segments&, float* gradients, int threads);
    // coordinates [count, r, k], outside [count, r]
    void (*kron_project)(const Segments&, const Basis&, float* coordinates, float* outside, int threads);
    // weight [r, k], residual [r], variance [count]
    void (*kron_variance)(const Segments&, const Basis&, const float* weight, const float* residual, float* variance,
                          int threads);
    // bases [k, r, d], products [count, k], squared_norms [count]
    void (*ggn_project)(const Segments&, const void* bases, DType, int64_t k, double* products, double* squared_norms,
                        int threads);
};

extern const Kernels kernels_generic, kernels_avx2, kernels_avx512;

}  // namespace bayesrm
