// Loops over one row of numbers that several families need.
#pragma once

#include "storage.h"

namespace hyperkernels {

// to = from in the type A.
struct Widen {
  template <class T, class A>
  static HK_INLINE void run(const T* from, int64_t count, A* to) {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) to[k] = A(simd::load(from + k));
  }
};

// to += from.
struct Add {
  template <class A>
  static HK_INLINE void run(const A* from, int64_t count, A* to) {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) to[k] += from[k];
  }
};

// to += g * from.
struct AddScaled {
  template <class T, class A>
  static HK_INLINE void run(const T* from, int64_t count, A g, A* to) {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) to[k] += g * A(simd::load(from + k));
  }
};

}  // namespace hyperkernels
