// Errors by name.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace bayesrm::cuda {

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // so that the next call starts clean
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
}

}  // namespace bayesrm::cuda
