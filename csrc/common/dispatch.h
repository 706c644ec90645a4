// One source, several instruction sets: loops are written plainly, compiled once per set, and the widest one that the
// processor has is picked at run time.
//
// A kernel is a struct with a static always-inline template `run`. `simd::run<Kernel>(args...)` calls its best version:
// once for a range of rows, a tile or a row that is copied, never for each number.
#pragma once

#include <cstdint>

#include "old_glibc.h"

#define HK_INLINE inline __attribute__((always_inline))
// For lambdas that belong into a kernel's loops.
#define HK_LAMBDA __attribute__((always_inline))
// What rows outside the usual range take: compiled once, for the baseline, and not into every kernel.
#define HK_RARE __attribute__((noinline, cold))

#if defined(__x86_64__)
#define HK_X86 1
#define HK_AVX2 __attribute__((target("avx2,fma,bmi2")))
#define HK_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2")))
#define HK_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi2")))
#endif

namespace hyperkernels::simd {

enum class Capability { kBaseline, kAvx2, kAvx512 };

// The set in use: the widest that processor and system support, unless a narrower one was asked for.
Capability capability();
const char* capability_name();
// From now on the set of that name, or the widest one below it that this processor has. False: there is no such name.
bool use_capability(const char* name);
// Whether HK_AVX512_BF16 may run: the processor has it and the set in use is avx512.
bool multiplies_bfloat16();
// What this build holds, e.g. "baseline, avx2, avx512".
const char* compiled_capabilities();

template <class Kernel, class... Args>
void run_baseline(Args... args) {
  Kernel::run(args...);
}

#ifdef HK_X86
template <class Kernel, class... Args>
HK_AVX2 void run_avx2(Args... args) {
  Kernel::run(args...);
}

template <class Kernel, class... Args>
HK_AVX512 void run_avx512(Args... args) {
  Kernel::run(args...);
}
#endif

template <class Kernel, class... Args>
void run(Args... args) {
#ifdef HK_X86
  if (capability() == Capability::kAvx512) return run_avx512<Kernel>(args...);
  if (capability() == Capability::kAvx2) return run_avx2<Kernel>(args...);
#endif
  run_baseline<Kernel>(args...);
}

}  // namespace hyperkernels::simd
