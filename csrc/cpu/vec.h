// A vector of floats as wide as the instruction set that this file is compiled for. BAYESRM_ISA names that set and its
// namespace, so that the three builds of one header do not collide.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__AVX512F__)
#define BAYESRM_WIDTH 16
#elif defined(__AVX2__)
#define BAYESRM_WIDTH 8
#else
#define BAYESRM_WIDTH 4
#endif

namespace bayesrm::BAYESRM_ISA {

constexpr int kWidth = BAYESRM_WIDTH;

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef float UnalignedVec __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(kWidth * 4)));
typedef uint16_t UnalignedHalves __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));

struct BFloat16 {
    uint16_t bits;
};

inline float widened(float x) { return x; }

inline float widened(BFloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }

inline Vec load(const BFloat16* from) {
    return Vec(__builtin_convertvector(*reinterpret_cast<const UnalignedHalves*>(from), Bits) << 16);
}

inline void store(float* to, Vec x) { *reinterpret_cast<UnalignedVec*>(to) = x; }

// The first `count` < kWidth elements; zeros after them, so that no read passes the end of a row.
template <class Q>
inline Vec load_first(const Q* from, int64_t count) {
    float padded[kWidth] = {};
    for (int64_t i = 0; i < count; ++i) padded[i] = widened(from[i]);
    return load(padded);
}

inline void store_first(float* to, Vec x, int64_t count) {
    float padded[kWidth];
    store(padded, x);
    std::memcpy(to, padded, count * 4);
}

inline float sum(Vec x) {
    typedef float Quad __attribute__((vector_size(16)));
    Quad quads[kWidth / 4];
    std::memcpy(quads, &x, sizeof x);
    for (int i = 1; i < kWidth / 4; ++i) quads[0] += quads[i];
    return (quads[0][0] + quads[0][2]) + (quads[0][1] + quads[0][3]);
}

// Scratch memory that begins at a cache line. Not a std::vector: the linker keeps one copy of a library's template for
// all instruction sets, and it may be the one that this processor cannot run.
class Scratch {
  public:
    explicit Scratch(int64_t floats) : floats_(static_cast<float*>(std::aligned_alloc(64, (floats * 4 + 127) / 64 * 64))) {
        if (floats_ == nullptr) throw std::bad_alloc();
    }
    ~Scratch() { std::free(floats_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    float* data() { return floats_; }

  private:
    float* floats_;
};

inline int64_t whole_vectors(int64_t floats) { return (floats + kWidth - 1) / kWidth * kWidth; }

}  // namespace bayesrm::BAYESRM_ISA
