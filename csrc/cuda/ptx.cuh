// Every PTX instruction that the kernels use, once and by name; tests/cuda/emulated_ptx.h has the same functions for a CPU.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace bayesrm::ptx {

using SharedAddress = uint32_t;  // in the block's shared-memory window
using TensorMap = CUtensorMap;

__device__ __forceinline__ unsigned char* shared_memory() {
    extern __shared__ __align__(1024) unsigned char bytes[];
    return bytes;
}

__device__ __forceinline__ SharedAddress shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ float as_float(uint32_t bits) { return __uint_as_float(bits); }

// Two floats rounded to bfloat16, `low` in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

__device__ __forceinline__ float2 load_constant(const float2* from) { return __ldg(from); }
__device__ __forceinline__ float load_constant(const float* from) { return __ldg(from); }
__device__ __forceinline__ float4 load_constant(const float4* from) { return __ldg(from); }

// 16 bytes that this block reads once.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
    uint4 loaded;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(loaded.x), "=r"(loaded.y), "=r"(loaded.z), "=r"(loaded.w)
                 : "l"(from));
    return loaded;
}

// The 128 bytes around an address, into the second-level cache.
__device__ __forceinline__ void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

// Four 8 × 8 matrices of 16 bits; lane l gives the address of row l % 8 of matrix l / 8. Lane l gets of each matrix the two
// elements (l / 4, 2 (l % 4)) and the next one in the row, or with `transposed` in the column.
__device__ __forceinline__ void ldmatrix(uint32_t (&to)[4], SharedAddress row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&to)[4], SharedAddress row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row)
                 : "memory");
}

// c [16, 8] += a [16, 16] b [16, 8], bfloat16 into float32. Lane l has of c the rows l / 4 and l / 4 + 8 at the columns
// 2 (l % 4) and the next; of a the same rows at those columns, then at those columns + 8; of b the rows 2 (l % 4) and the
// next at column l / 4, then those rows + 8.
__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b_first, uint32_t b_second) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_first), "r"(b_second));
}

__device__ __forceinline__ void warp_barrier() { __syncwarp(); }

// Waits for `threads` threads of the block at the named barrier.
__device__ __forceinline__ void barrier(int name, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// 16 bytes into shared memory, zeros where not `live`; the source is not read then.
__device__ __forceinline__ void copy_async(SharedAddress to, const void* from, bool live) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(live ? 16 : 0) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most `PENDING` of this thread's committed groups are under way.
template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Read again wherever they are asked for: what lives in registers across a change of their number is spilled.
__device__ __forceinline__ int thread_index() {
    int index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return index;
}

__device__ __forceinline__ int block_index() {
    int index;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
    return index;
}

__device__ __forceinline__ int blocks() {
    int count;
    asm volatile("mov.u32 %0, %%nctaid.x;" : "=r"(count));
    return count;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define BAYESRM_SM90
#endif

#if !defined(__CUDA_ARCH__) || defined(BAYESRM_SM90)

__device__ __forceinline__ void init_barrier(SharedAddress barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes fresh barriers known to the copy engine.
__device__ __forceinline__ void fence_barrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(SharedAddress barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and makes the phase wait for so many bytes more.
__device__ __forceinline__ void arrive_expecting(SharedAddress barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Arrives once this thread's copies so far are done.
__device__ __forceinline__ void arrive_after_copies(SharedAddress barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Until the phase of this parity is complete.
__device__ __forceinline__ void wait_barrier(SharedAddress barrier, uint32_t parity) {
    uint32_t complete = 0;
    while (!complete)
        asm volatile(
            "{\n.reg .pred complete;\n"
            "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 complete, [%1], %2;\n"
            "selp.u32 %0, 1, 0, complete;\n}"
            : "=r"(complete)
            : "r"(barrier), "r"(parity)
            : "memory");
}

// A box of a two-dimensional tensor, at (column, row), by the copy engine; zeros beyond its edges.
__device__ __forceinline__ void load_box(SharedAddress to, const TensorMap* map, int column, int row,
                                         SharedAddress barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}

// Of a thread, from the block's pool and into it; a whole group of four warps at a time.
template <int COUNT>
__device__ __forceinline__ void claim_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT>
__device__ __forceinline__ void release_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

#endif

}  // namespace bayesrm::ptx
