// What both launchers need: errors by name, and the compiled shape for a launch.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "kernels.h"

namespace bayesrm::cuda {

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // so that the next call starts clean
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
}

template <int R, int K>
struct Compiled {
    static constexpr int kR = R, kK = K;
};

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
