// The Python module `_cuda`: addresses and sizes in, nothing out. Its callers check shapes, dtypes and strides.
#include <pybind11/pybind11.h>

#include "check.h"
#include "kernels.h"

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
    module.def("shared_memory", [](bool sm90, int rows, int basis) {
        const auto of_block = sm90 ? bayesrm::cuda::sm90_shared_memory : bayesrm::cuda::sm80_shared_memory;
        return of_block({rows, basis, 1, 1});
    });
    module.def("split_halves", [](int device, Address stream, Address p, bool is_float, Address high, Address low,
                                  int64_t tokens, int r, int p_stride) {
        const OnDevice guard(device);
        bayesrm::cuda::split_halves(at<const void>(p), is_float, at<void>(high), at<void>(low), tokens, r, p_stride,
                                    at<void>(stream));
    });
    module.def("ggn_project", [](int device, Address stream, Address p, Address p_low, Address q, Address offsets,
                                 Address bases, Address parts, Address products, Address squared_norm, int64_t tokens,
                                 int count, int r, int p_stride, int d, int k, bool bases_are_float, int rows,
                                 int bases_of_block) {
        const OnDevice guard(device);
        const bayesrm::cuda::GgnProblem problem = {.p = at<const void>(p),
                                                   .p_low = at<const void>(p_low),
                                                   .q = at<const void>(q),
                                                   .offsets = at<const int64_t>(offsets),
                                                   .bases = at<const void>(bases),
                                                   .parts = at<float>(parts),
                                                   .products = at<double>(products),
                                                   .squared_norm = at<double>(squared_norm),
                                                   .tokens = tokens,
                                                   .count = count,
                                                   .r = r,
                                                   .p_stride = p_stride,
                                                   .d = d,
                                                   .k = k,
                                                   .bases_are_float = bases_are_float};
        bayesrm::cuda::ggn_project(problem, rows, bases_of_block, at<void>(stream));
    });
    module.def("project", [](int device, Address stream, Address p, Address p_low, Address q, Address offsets,
                             Address basis_p, Address basis_q_t, Address weight, Address residual, Address variance,
                             Address coordinates, Address outside, Address parts, int64_t tokens, int count, int r,
                             int p_stride, int d, int k, int rows, int basis, int groups, int blocks, bool sm90) {
        const OnDevice guard(device);
        const Problem problem = {.p = at<const void>(p),
                                 .p_low = at<const void>(p_low),
                                 .q = at<const void>(q),
                                 .offsets = at<const int64_t>(offsets),
                                 .basis_p = at<const float>(basis_p),
                                 .basis_q_t = at<const float>(basis_q_t),
                                 .weight = at<const float>(weight),
                                 .residual = at<const float>(residual),
                                 .variance = at<float>(variance),
                                 .coordinates = at<float>(coordinates),
                                 .outside = at<float>(outside),
                                 .parts = at<float>(parts),
                                 .tokens = tokens,
                                 .count = count,
                                 .r = r,
                                 .p_stride = p_stride,
                                 .d = d,
                                 .k = k};
        const Launch launch = {.rows = rows, .basis = basis, .groups = groups, .blocks = blocks};
        bayesrm::cuda::project(problem, launch, sm90, at<void>(stream));
    });
}
