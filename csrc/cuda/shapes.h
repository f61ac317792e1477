// The sizes that the kernels are compiled for.
#pragma once

#include <stdexcept>
#include <string>

#include "kernels.h"

namespace bayesrm::cuda {

template <int R, int K>
struct Compiled {};

template <int R>
struct Rows {};

// Calls `with(Rows<R>())` for r padded to `rows`.
template <class With>
auto for_rows(int rows, const With& with) {
    if (rows == 16) return with(Rows<16>());
    if (rows == 32) return with(Rows<32>());
    if (rows == 64) return with(Rows<64>());
    throw std::invalid_argument("no kernel was compiled for rows " + std::to_string(rows));
}

// Calls `with(Compiled<R, K>())` for the launch's sizes.
template <class With>
auto for_shape(const Launch& launch, const With& with) {
    const auto by_basis = [&]<int R>() {
        if (launch.basis == 16) return with(Compiled<R, 16>());
        if (launch.basis == 64) return with(Compiled<R, 64>());
        throw std::invalid_argument("no kernel was compiled for basis " + std::to_string(launch.basis));
    };
    return for_rows(launch.rows, [&]<int R>(Rows<R>) { return by_basis.template operator()<R>(); });
}

}  // namespace bayesrm::cuda
