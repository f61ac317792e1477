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
    float* parts;            // [count, blocks, rows, rows + basis], for the sm80 kernel
    int64_t tokens;
    int count, r, p_stride, d, k;
};

// How it is launched: ops/cuda/configs.py decides.
struct Launch {
    int rows;      // r padded to 16, 32 or 64
    int basis;     // k padded to 16 or 64
    int blocks;    // that share a segment's columns; of the sm90 kernel the size of a cluster
    int clusters;  // of the sm90 kernel, that share the segments
};

// p [tokens, r] as Problem wants it. `low` is null where p is in bfloat16.
void split_halves(const void* p, bool is_float, void* high, void* low, int64_t tokens, int r, int p_stride, void* stream);

void project_sm80(const Problem& problem, const Launch& launch, void* stream);
void project_sm90(const Problem& problem, const Launch& launch, void* stream);

// Bytes of shared memory that a block of each takes.
int sm80_shared_memory(const Launch& launch);
int sm90_shared_memory(const Launch& launch);

// Throws where the current device has no compiled kernel.
void require_kernels();

// Clusters of project_sm90 that the current device holds at once.
int resident_clusters(const Launch& launch);

}  // namespace bayesrm::cuda
