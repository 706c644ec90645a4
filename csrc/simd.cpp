#include "simd.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace hyperkernels::simd {

namespace {

Capability detect() {
  Capability best = Capability::kBaseline;
#ifdef HK_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    best = Capability::kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      best = Capability::kAvx512;
    }
  }
#endif
  const char* wanted = std::getenv("HYPERKERNELS_CPU_CAPABILITY");
  const std::string name = wanted == nullptr ? "" : wanted;
  if (name == "baseline") return Capability::kBaseline;
  if (name == "avx2" && best == Capability::kAvx512) return Capability::kAvx2;
  if (name != "" && name != "avx2" && name != "avx512") {
    throw std::invalid_argument("HYPERKERNELS_CPU_CAPABILITY must be baseline, avx2 or avx512; got " + name);
  }
  return best;
}

}  // namespace

Capability capability() {
  static const Capability detected = detect();
  return detected;
}

const char* capability_name() {
  switch (capability()) {
    case Capability::kAvx512:
      return "avx512";
    case Capability::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

bool multiplies_bfloat16() {
#ifdef HK_X86
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has && capability() == Capability::kAvx512;
#else
  return false;
#endif
}

const char* compiled_capabilities() {
#ifdef HK_X86
  return "baseline, avx2, avx512";
#else
  return "baseline";
#endif
}

}  // namespace hyperkernels::simd
