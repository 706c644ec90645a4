// The module `hyperkernels._C`: facts of the build. The ops themselves are registered with torch's dispatcher by the
// files of each family when this library is loaded; their schemas are in hyperkernels/<family>/op.py.

#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <string>

#include "simd.h"

#define HK_STRING_(...) #__VA_ARGS__
#define HK_STRING(...) HK_STRING_(__VA_ARGS__)

namespace {

std::string compiler() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#else
  return std::string("gcc ") + __VERSION__;
#endif
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["compiler"] = compiler();
  info["instruction_sets"] = hyperkernels::simd::compiled_capabilities();
#ifdef HK_CUDA_ARCHITECTURES
  info["cuda_architectures"] = HK_STRING(HK_CUDA_ARCHITECTURES);
#else
  info["cuda_architectures"] = "";
#endif
  info["torch"] = TORCH_VERSION;
  return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled kernels of hyperkernels.";
  m.def("build_info", &build_info, "compiler, instruction_sets, cuda_architectures and torch version of this build");
  m.def("cpu_capability", &hyperkernels::simd::capability_name, "the instruction set in use on this processor");
}
