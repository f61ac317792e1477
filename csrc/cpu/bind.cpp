// The Python module `_cpu`: addresses and sizes in, nothing out. Its callers check shapes, dtypes and strides.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace {

using bayesrm::Basis;
using bayesrm::DType;
using bayesrm::Kernels;
using bayesrm::Segments;
using Address = uintptr_t;

// Those that this processor can run, the widest first.
std::vector<const Kernels*> runnable() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        found.push_back(&bayesrm::kernels_avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&bayesrm::kernels_avx2);
#endif
    found.push_back(&bayesrm::kernels_generic);
    return found;
}

const Kernels* chosen = runnable().front();

const Kernels& kernels() { return *chosen; }

void choose_instruction_set(const std::string& name) {
    for (const Kernels* candidate : runnable())
        if (name == candidate->name) {
            chosen = candidate;
            return;
        }
    throw std::invalid_argument("this processor cannot run " + name);
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Kernels* candidate : runnable()) names.push_back(candidate->name);
    return names;
}

// Holds the order that its Segments point to.
class Call {
  public:
    Call(Address p, Address q, Address offsets, int64_t count, int64_t r, int64_t d, int p_dtype, int q_dtype)
        : order_(count) {
        const int64_t* bounds = reinterpret_cast<const int64_t*>(offsets);
        std::iota(order_.begin(), order_.end(), int64_t(0));
        std::stable_sort(order_.begin(), order_.end(), [bounds](int64_t a, int64_t b) {
            return bounds[a + 1] - bounds[a] > bounds[b + 1] - bounds[b];
        });
        segments = {reinterpret_cast<const void*>(p), reinterpret_cast<const void*>(q), bounds, order_.data(), count, r, d,
                    DType(p_dtype), DType(q_dtype)};
    }
    Segments segments;

  private:
    std::vector<int64_t> order_;
};

float* floats(Address at) { return reinterpret_cast<float*>(at); }
double* doubles(Address at) { return reinterpret_cast<double*>(at); }

}  // namespace

PYBIND11_MODULE(_cpu, module) {
    module.def("instruction_set", [] { return kernels().name; });
    module.def("instruction_sets", &instruction_sets);
    module.def("choose_instruction_set", &choose_instruction_set);  // for tests: the widest is chosen already
    module.def("segment_outer", [](Address p, Address q, Address offsets, int64_t count, int64_t r, int64_t d,
                                   int p_dtype, int q_dtype, Address out, int threads) {
        pybind11::gil_scoped_release released;
        kernels().segment_outer(Call(p, q, offsets, count, r, d, p_dtype, q_dtype).segments, floats(out), threads);
    });
    module.def("kron_project", [](Address p, Address q, Address offsets, int64_t count, int64_t r, int64_t d, int p_dtype,
                                  int q_dtype, Address basis_p, Address basis_q_t, int64_t k, Address coordinates,
                                  Address outside, int threads) {
        pybind11::gil_scoped_release released;
        kernels().kron_project(Call(p, q, offsets, count, r, d, p_dtype, q_dtype).segments,
                               {floats(basis_p), floats(basis_q_t), k}, floats(coordinates), floats(outside), threads);
    });
    module.def("kron_variance", [](Address p, Address q, Address offsets, int64_t count, int64_t r, int64_t d,
                                   int p_dtype, int q_dtype, Address basis_p, Address basis_q_t, int64_t k,
                                   Address weight, Address residual, Address out, int threads) {
        pybind11::gil_scoped_release released;
        kernels().kron_variance(Call(p, q, offsets, count, r, d, p_dtype, q_dtype).segments,
                                {floats(basis_p), floats(basis_q_t), k}, floats(weight), floats(residual), floats(out),
                                threads);
    });
    module.def("ggn_project", [](Address p, Address q, Address offsets, int64_t count, int64_t r, int64_t d, int p_dtype,
                                 int q_dtype, Address bases, int dtype, int64_t k, Address products,
                                 Address squared_norms, int threads) {
        pybind11::gil_scoped_release released;
        kernels().ggn_project(Call(p, q, offsets, count, r, d, p_dtype, q_dtype).segments,
                              reinterpret_cast<const void*>(bases), DType(dtype), k, doubles(products),
                              doubles(squared_norms), threads);
    });
}
