// Sums in float64: a vector of half as many doubles as a Vec has floats, and whatever is widened to it in registers.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "vec.h"

namespace bayesrm::BAYESRM_ISA {

constexpr int kWideWidth = kWidth / 2;

typedef double Wide __attribute__((vector_size(kWidth * 4)));
typedef double UnalignedWide __attribute__((vector_size(kWidth * 4), aligned(8), may_alias));

inline double widened(double x) { return x; }
inline double widened(int8_t x) { return x; }

inline Wide load_wide(const double* from) { return *reinterpret_cast<const UnalignedWide*>(from); }

// By intrinsics where there are some: of __builtin_convertvector, gcc makes several conversions of a part each.
#if defined(__AVX512F__)
inline Wide widened(__m256 x) { return _mm512_maskz_cvtps_pd(0xff, x); }  // unmasked, its headers draw a warning

inline Wide load_wide(const float* from) { return widened(_mm256_loadu_ps(from)); }

inline Wide load_wide(const BFloat16* from) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return widened(_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)));
}

inline Wide load_wide(const int8_t* from) {
    const __m256i whole = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    return _mm512_maskz_cvtepi32_pd(0xff, whole);
}
#elif defined(__AVX2__)
inline Wide load_wide(const float* from) { return _mm256_cvtps_pd(_mm_loadu_ps(from)); }

inline Wide load_wide(const BFloat16* from) {
    const __m128i bits = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(bits, 16)));
}

inline Wide load_wide(const int8_t* from) {
    int32_t four;
    std::memcpy(&four, from, sizeof four);
    return _mm256_cvtepi32_pd(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four)));
}
#else
template <class T>
inline Wide load_wide(const T* from) {
    Wide x;
    for (int i = 0; i < kWideWidth; ++i) x[i] = widened(from[i]);
    return x;
}
#endif

inline void store_wide(double* to, Wide x) { *reinterpret_cast<UnalignedWide*>(to) = x; }

inline double sum(Wide x) {
    typedef double Pair __attribute__((vector_size(16)));
    Pair pairs[kWideWidth / 2];
    std::memcpy(pairs, &x, sizeof x);
    for (int count = kWideWidth / 2; count > 1; count /= 2)
        for (int i = 0; i < count / 2; ++i) pairs[i] += pairs[i + count / 2];
    return pairs[0][0] + pairs[0][1];
}

inline double wide_squared_norm(const float* x, int64_t count) {
    Wide sums = {};
    int64_t at = 0;
    for (; at + kWideWidth <= count; at += kWideWidth) {
        const Wide y = load_wide(x + at);
        sums += y * y;
    }
    for (; at < count; ++at) sums[0] += double(x[at]) * x[at];
    return sum(sums);
}

}  // namespace bayesrm::BAYESRM_ISA
