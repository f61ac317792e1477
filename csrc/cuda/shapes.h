// The sizes that the kernels are compiled for.
#pragma once

#include <stdexcept>
#include <string>

#include "kernels.h"

namespace bayesrm::cuda {

template <int R, int K>
struct Compiled {};

// Calls `with(Compiled<R, K>())` for the launch's sizes.
template <class With>
auto for_shape(const Launch& launch, const With& with) {
    const auto by_basis = [&]<int R>() {
        if (launch.basis == 16) return with(Compiled<R, 16>());
        if (launch.basis == 64) return with(Compiled<R, 64>());
        throw std::invalid_argument("no kernel was compiled for basis " + std::to_string(launch.basis));
    };
    if (launch.rows == 16) return by_basis.template operator()<16>();
    if (launch.rows == 32) return by_basis.template operator()<32>();
    if (launch.rows == 64) return by_basis.template operator()<64>();
    throw std::invalid_argument("no kernel was compiled for rows " + std::to_string(launch.rows));
}

}  // namespace bayesrm::cuda
