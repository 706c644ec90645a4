// What Python asks the library itself, through ctypes: facts of the build, the instruction set, and Ctrl-C. Nothing
// here needs a Python header, so that one library serves every Python.

#include <map>
#include <string>

#include "common/dispatch.h"
#include "common/interrupt.h"
#include "common/op.h"

#define HK_STRING_(...) #__VA_ARGS__
#define HK_STRING(...) HK_STRING_(__VA_ARGS__)

namespace hyperkernels {

std::map<std::string, std::string>& signatures() {
  static std::map<std::string, std::string> all;
  return all;
}

namespace {

std::string compiler() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#else
  return std::string("gcc ") + __VERSION__;
#endif
}

// "name: types", a line for each op.
std::string lines_of_signatures() {
  std::string text;
  for (const auto& [name, types] : signatures()) text += name + ": " + types + "\n";
  return text;
}

std::string fact(const std::string& name) {
  if (name == "compiler") return compiler();
  if (name == "instruction_sets") return simd::compiled_capabilities();
  if (name == "cpu_capability") return simd::capability_name();
  if (name == "signatures") return lines_of_signatures();
#ifdef HK_CUDA_ARCHITECTURES
  if (name == "cuda_architectures") return HK_STRING(HK_CUDA_ARCHITECTURES);
#endif
  return "";
}

// Functions of Python's stable C API.
struct Python {
  unsigned long main_thread;
  unsigned long (*thread)();
  int (*take_lock)();
  void (*release_lock)(int);
  int (*check_signals)();
} python;

// Python runs the handlers of signals in its main thread alone; that of Ctrl-C raises KeyboardInterrupt, which becomes
// the cause of the RuntimeError that torch makes of this one.
void run_signal_handlers() {
  if (python.thread() != python.main_thread) return;
  const int lock = python.take_lock();
  const bool raised = python.check_signals() != 0;
  python.release_lock(lock);
  if (raised) throw std::runtime_error("interrupted");
}

}  // namespace

}  // namespace hyperkernels

extern "C" {

#if defined(__GLIBC__)
// libstdc++ asks it whether reference counts may do without atomics. It is glibc's since 2.32; this one says no.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
#endif

// The fact of that name; empty where there is none. Valid until the next call.
const char* hyperkernels_fact(const char* name) {
  static thread_local std::string text;
  text = hyperkernels::fact(name);
  return text.c_str();
}

// 0: there is no instruction set of that name.
int hyperkernels_use_cpu_capability(const char* name) { return hyperkernels::simd::use_capability(name); }

void hyperkernels_poison_memory(int on) { hyperkernels::poisons_memory = on != 0; }

void hyperkernels_watch_signals(unsigned long main_thread, unsigned long (*thread)(), int (*take_lock)(),
                                void (*release_lock)(int), int (*check_signals)()) {
  hyperkernels::python = {main_thread, thread, take_lock, release_lock, check_signals};
  hyperkernels::set_interruption(hyperkernels::run_signal_handlers);
}

}  // extern "C"
