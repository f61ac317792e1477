// The Python module `_cuda`: addresses and sizes in, nothing out. Its callers check shapes, dtypes and strides.
#include <pybind11/pybind11.h>

#include "launch.h"

namespace {

using Address = uintptr_t;
using bayesrm::cuda::check;
using bayesrm::cuda::Launch;
using bayesrm::cuda::Problem;

// Launches go to the current device: makes it the tensors' own for as long as a call takes.
class OnDevice {
  public:
    explicit OnDevice(int device) : device_(device) {
        check(cudaGetDevice(&before_), "the current device");
        if (device_ != before_) check(cudaSetDevice(device_), "the tensors' device");
    }
    ~OnDevice() {
        if (device_ != before_) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

  private:
    int device_, before_ = 0;
};

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
    module.attr("architectures") = BAYESRM_CUDA_ARCHS;
    // Raises where no kernel was compiled for a device.
    module.def("require_kernels", [](int device) {
        const OnDevice guard(device);
        bayesrm::cuda::require_kernels();
    });
    module.def("resident_clusters", [](int device, int rows, int basis, int blocks) {
        const OnDevice guard(device);
        return bayesrm::cuda::resident_clusters({rows, basis, blocks, 1});
    });
    module.def("project", [](int device, Address stream, Address p, Address q, Address offsets, Address basis_p,
                             Address basis_q_t, Address weight, Address residual, Address variance, Address coordinates,
                             Address outside, Address parts, int64_t tokens, int count, int r, int p_stride, int d, int k,
                             int rows, int basis, int blocks, int clusters) {
        const OnDevice guard(device);
        const Problem problem = {at<const void>(p),         at<const void>(q),
                                 at<const int64_t>(offsets), at<const float>(basis_p),
                                 at<const float>(basis_q_t), at<const float>(weight),
                                 at<const float>(residual),  at<float>(variance),
                                 at<float>(coordinates),     at<float>(outside),
                                 at<float>(parts),           tokens,
                                 count,                      r,
                                 p_stride,                   d,
                                 k};
        const Launch launch = {rows, basis, blocks, clusters};
        // Only the portable kernel needs room for the blocks' parts.
        const auto project = parts != 0 ? bayesrm::cuda::project_portable : bayesrm::cuda::project_hopper;
        project(problem, launch, at<void>(stream));
    });
}
