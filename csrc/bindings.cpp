// The module `hyperkernels._C`: facts of the build. The ops themselves are registered with torch's dispatcher by the
// files of each family when this library is loaded; their schemas are in hyperkernels/<family>/op.py.

#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <string>

#include "interrupt.h"
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

unsigned long main_thread;

// Python runs the handlers of signals in its main thread alone; that of Ctrl-C raises KeyboardInterrupt.
void run_signal_handlers() {
  if (PyThread_get_thread_ident() != main_thread) return;
  pybind11::gil_scoped_acquire lock;
  if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled kernels of hyperkernels.";
  main_thread = pybind11::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
  hyperkernels::set_interruption(run_signal_handlers);
  m.def("build_info", &build_info, "compiler, instruction_sets, cuda_architectures and torch version of this build");
  m.def("cpu_capability", &hyperkernels::simd::capability_name, "the instruction set in use on this processor");
}
