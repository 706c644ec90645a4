#include <algorithm>
#include <atomic>
#include <string_view>

#include "dispatch.h"

namespace hyperkernels::simd {

namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

Capability widest() {
#ifdef HK_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? Capability::kAvx512 : avx2 ? Capability::kAvx2 : Capability::kBaseline;
#else
  return Capability::kBaseline;
#endif
}

std::atomic<Capability>& in_use() {
  static std::atomic<Capability> capability{widest()};
  return capability;
}

}  // namespace

Capability capability() { return in_use().load(std::memory_order_relaxed); }

const char* capability_name() { return kNames[int(capability())]; }

bool use_capability(const char* name) {
  const auto* found = std::find(std::begin(kNames), std::end(kNames), std::string_view(name));
  if (found == std::end(kNames)) return false;
  in_use() = std::min(Capability(found - kNames), widest());
  return true;
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
