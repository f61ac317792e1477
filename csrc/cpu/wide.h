// Sums in float64: a vector of half as many doubles as a Vec has floats, and whatever is widened to it in registers.
#pragma once

#include <algorithm>

#include "vec.h"

namespace bayesrm::BAYESRM_ISA {

constexpr int kWideWidth = kWidth / 2;

typedef double Wide __attribute__((vector_size(kWidth * 4)));
typedef double UnalignedWide __attribute__((vector_size(kWidth * 4), aligned(8), may_alias));
typedef float UnalignedHalfVec __attribute__((vector_size(kWidth * 2), aligned(4), may_alias));
typedef float HalfVec __attribute__((vector_size(kWidth * 2)));
typedef uint32_t HalfBits __attribute__((vector_size(kWidth * 2)));
typedef uint16_t UnalignedQuarter __attribute__((vector_size(kWidth), aligned(2), may_alias));

inline double widened(double x) { return x; }

inline Wide load_wide(const double* from) { return *reinterpret_cast<const UnalignedWide*>(from); }

inline Wide load_wide(const float* from) {
    return __builtin_convertvector(*reinterpret_cast<const UnalignedHalfVec*>(from), Wide);
}

inline Wide load_wide(const BFloat16* from) {
    const HalfBits bits = __builtin_convertvector(*reinterpret_cast<const UnalignedQuarter*>(from), HalfBits) << 16;
    return __builtin_convertvector(HalfVec(bits), Wide);
}

// The first `count` < kWideWidth elements; zeros after them, so that no read passes the end of a row.
template <class T>
inline Wide load_wide_first(const T* from, int64_t count) {
    double padded[kWideWidth] = {};
    for (int64_t i = 0; i < count; ++i) padded[i] = widened(from[i]);
    return load_wide(padded);
}

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
    const Wide y = load_wide_first(x + at, count - at);
    return sum(sums + y * y);
}

}  // namespace bayesrm::BAYESRM_ISA
