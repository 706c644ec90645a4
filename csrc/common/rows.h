// Loops over one row of numbers that several families need.
#pragma once

#include <type_traits>

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

// to = from in 16 bits.
struct Narrow {
  template <class T>
  static HK_INLINE void run(const float* from, int64_t count, T* to) {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) simd::store(to + k, from[k]);
  }
};

// How the rows of a matrix are stored: in the type A that they are computed in, or in 16 bits. Loops over them see A
// alone: rows of 16 bits are read into scratch memory and written from there.
enum class Stored { kPlain, kBfloat16, kHalf };

// Rows to read, each with unit stride; they may coincide (stride 0).
template <class A>
struct InRows {
  const void* data;
  int64_t stride;
  Stored stored;

  // The numbers of a row: in place, or in scratch.
  HK_INLINE const A* read(int64_t row, A* scratch, int64_t dim) const {
    if constexpr (std::is_same_v<A, float>) {
      const auto* halves = static_cast<const uint16_t*>(data) + row * stride;
      if (stored == Stored::kBfloat16) {
        simd::run<Widen>(reinterpret_cast<const simd::Bfloat16*>(halves), dim, scratch);
        return scratch;
      }
      if (stored == Stored::kHalf) {
        simd::run<Widen>(reinterpret_cast<const simd::Half*>(halves), dim, scratch);
        return scratch;
      }
    }
    return static_cast<const A*>(data) + row * stride;
  }
};

// Rows to write, side by side; null where none are wanted.
template <class A>
struct OutRows {
  void* data;
  Stored stored;

  HK_INLINE bool wanted() const { return data != nullptr; }
  // Scratch memory that a loop needs for rows of that length.
  HK_INLINE int64_t scratch(int64_t dim) const { return stored == Stored::kPlain ? 0 : dim; }
  // Where a row is written, before `finish`: in place, or in scratch.
  HK_INLINE A* row(int64_t row, A* scratch, int64_t dim) const {
    return stored == Stored::kPlain ? static_cast<A*>(data) + row * dim : scratch;
  }
  HK_INLINE void finish(int64_t row, const A* written, int64_t dim) const {
    if constexpr (std::is_same_v<A, float>) {
      auto* halves = static_cast<uint16_t*>(data) + row * dim;
      if (stored == Stored::kBfloat16) simd::run<Narrow>(written, dim, reinterpret_cast<simd::Bfloat16*>(halves));
      if (stored == Stored::kHalf) simd::run<Narrow>(written, dim, reinterpret_cast<simd::Half*>(halves));
    }
  }
  // The numbers that stand there now, to be changed and then finished.
  HK_INLINE A* read(int64_t i, A* scratch, int64_t dim) const {
    InRows<A>{data, dim, stored}.read(i, scratch, dim);
    return row(i, scratch, dim);
  }
};

}  // namespace hyperkernels
