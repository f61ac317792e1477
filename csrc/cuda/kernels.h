// What bind.cpp calls: plain pointers and sizes, and a stream.
#pragma once

#include <cstdint>

namespace bayesrm::cuda {

// Row-major and contiguous. p, q in bfloat16, all else in float32. p_stride and d are multiples of 8, k <= 64 and r <= 64.
struct Problem {
    const void* p;           // [tokens, p_stride], of which r columns count and the others are zero
    const void* p_low;       // likewise, to be added to p: what bfloat16 leaves of a float32; null where that is nothing
    const void* q;           // [tokens, d]
    const int64_t* offsets;  // [count + 1]
    const float* basis_p;    // V [r, r]
    const float* basis_q_t;  // Uᵀ [k, d]
    const float* weight;     // [r, k], for the variance alone
    const float* residual;   // [r], likewise
    float* variance;         // [count]; null for the other two
    float* coordinates;      // [count, r, k]
    float* outside;          // [count, r]
    float* parts;            // [count, groups, rows, rows + basis], room for sums on the way
    int64_t tokens;
    int count, r, p_stride, d, k;
};

// How it is launched: ops/cuda/configs.py decides.
struct Launch {
    int rows;    // r padded to 16, 32 or 64
    int basis;   // k padded to 16 or 64
    int groups;  // that a segment's column tiles are shared out to
    int blocks;  // count * groups; of the sm90 kernel, which has each take several, as many as the chip has room for
};

// Of ggn_project: row-major and contiguous; p, p_low, q and their sizes as in Problem. The last two are results.
struct GgnProblem {
    const void* p;
    const void* p_low;
    const void* q;
    const int64_t* offsets;
    const void* bases;     // [k, r, d], in float32 or bfloat16
    float* parts;          // [count, d in 64s, k + 1]
    double* products;      // [count, k]
    double* squared_norm;  // [count]
    int64_t tokens;
    int count, r, p_stride, d, k, bases_are_float;
};

// Most bases that a block may have.
constexpr int kMostBases = 64;

// p [tokens, r] as Problem wants it. `low` is null where p is in bfloat16.
void split_halves(const void* p, bool is_float, void* high, void* low, int64_t tokens, int r, int p_stride, void* stream);

// kron_variance and kron_project.
void project(const Problem& problem, const Launch& launch, bool sm90, void* stream);

// Its first kernel: into parts, [H | S] of each segment's groups.
void sum_columns_sm80(const Problem& problem, const Launch& launch, void* stream);
void sum_columns_sm90(const Problem& problem, const Launch& launch, void* stream);

// `rows` is r padded to 16, 32 or 64; `bases` are of one block, at most kMostBases. Any chip from sm_80 on.
void ggn_project(const GgnProblem& problem, int rows, int bases, void* stream);

// Bytes of shared memory that a block of each takes.
int sm80_shared_memory(const Launch& launch);
int sm90_shared_memory(const Launch& launch);

// Throws where the current device has no compiled kernel.
void require_kernels();

}  // namespace bayesrm::cuda
