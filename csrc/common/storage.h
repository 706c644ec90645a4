// The types that numbers are stored in, and the ones in which they are computed.
#pragma once

#include <cstring>

#include "dispatch.h"

namespace hyperkernels {

namespace simd {

template <class To, class From>
HK_INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// 16-bit floats as storage; arithmetic happens in float.
struct Bfloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

HK_INLINE double load(const double* p) { return *p; }
HK_INLINE float load(const float* p) { return *p; }
HK_INLINE float load(const Bfloat16* p) { return bits<float>(uint32_t(p->bits) << 16); }
HK_INLINE float load(const Half* p) {
  const uint32_t magnitude = (p->bits & 0x7fffu) << 13;
  // A subnormal m 2^-24 is taken as 2^-14 + m 2^-24, less 2^-14. No subnormal float comes up, which a thread may flush.
  const bool subnormal = magnitude < (1u << 23);
  const uint32_t rebased = magnitude + (subnormal ? 113u << 23 : 112u << 23);
  uint32_t value = bits<uint32_t>(bits<float>(rebased) - (subnormal ? 0x1p-14f : 0.f));
  value |= magnitude >= (0x7c00u << 13) ? 0x7f800000u : 0u;
  return bits<float>(value | (uint32_t(p->bits & 0x8000u) << 16));
}

HK_INLINE void store(double* p, double v) { *p = v; }
HK_INLINE void store(float* p, double v) { *p = float(v); }
HK_INLINE void store(float* p, float v) { *p = v; }
HK_INLINE void store(Bfloat16* p, float v) {
  const uint32_t value = bits<uint32_t>(v);
  const uint32_t rounded = value + 0x7fffu + ((value >> 16) & 1u);
  p->bits = uint16_t(v != v ? 0x7fc0u : rounded >> 16);
}
HK_INLINE void store(Half* p, float v) {
  const uint32_t value = bits<uint32_t>(v);
  const uint32_t sign = (value >> 16) & 0x8000u;
  const uint32_t magnitude = value & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding one half aligns a subnormal's bits and rounds it to nearest even.
  const uint32_t subnormal = bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  p->bits = uint16_t(result | sign);
}

}  // namespace simd

// The type in which numbers stored as T are computed.
template <class T>
using Accumulate = typename simd::Accumulate<T>::type;

}  // namespace hyperkernels
