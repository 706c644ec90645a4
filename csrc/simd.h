// One source, several instruction sets: loops are written plainly, compiled once per set, and the widest one that the
// processor has is picked at run time.
//
// A kernel is a struct with a static always-inline template `run`. `simd::run<Kernel>(args...)` calls its best version.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#define HK_INLINE inline __attribute__((always_inline))
// For lambdas that belong into a kernel's loops.
#define HK_LAMBDA __attribute__((always_inline))

#if defined(__x86_64__)
#define HK_X86 1
#define HK_AVX2 __attribute__((target("avx2,fma,bmi2")))
#define HK_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2")))
#define HK_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi2")))
#endif

namespace hyperkernels::simd {

enum class Capability { kBaseline, kAvx2, kAvx512 };

// The widest set that processor and system support; HYPERKERNELS_CPU_CAPABILITY=baseline|avx2|avx512 lowers it.
Capability capability();
const char* capability_name();
// Whether HK_AVX512_BF16 may run: the processor has it and capability() is not lowered.
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

// e^x, within about one unit in the last place; 0 below the smallest normal number, x at most a few.
HK_INLINE float exp(float x) {
  const float clamped = x < -87.33654f ? -87.33654f : x;
  const float shifted = clamped * 1.44269504088896341f + 12582912.f;
  const float n = shifted - 12582912.f;
  const float r = (clamped - n * 0.693145751953125f) - n * 1.42860682030941723212e-6f;
  float p = 1.f / 5040;
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  const float power = bits<float>((bits<uint32_t>(shifted) << 23) + 0x3f800000u);
  return x < -87.33654f ? 0.f : p * power;
}

HK_INLINE double exp(double x) {
  const double clamped = x < -708.39 ? -708.39 : x;
  const double shifted = clamped * 1.44269504088896340736 + 6755399441055744.0;
  const double n = shifted - 6755399441055744.0;
  const double r = (clamped - n * 6.93147180369123816490e-1) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const double power = bits<double>((bits<uint64_t>(shifted) << 52) + 0x3ff0000000000000ull);
  return x < -708.39 ? 0.0 : p * power;
}

// sin(r) for |r| <= pi / 2.
HK_INLINE float sin_reduced(float r) {
  const float q = r * r;
  float p = 2.6083159809786593541503e-06f;
  p = p * q - 0.0001981069071916863322258f;
  p = p * q + 0.00833307858556509017944336f;
  p = p * q - 0.166666597127914428710938f;
  return r + r * q * p;
}

// x - n * pi / 2 without losing digits, n a whole number below 2^12.
HK_INLINE float less_quarter_turns(float x, float n) {
  return ((x - n * 1.5703125f) - n * 4.837512969970703125e-4f) - n * 7.54978995489188216e-8f;
}

// sine and cosine of |x| up to some thousands; the error is about one unit in the last place of 1.
HK_INLINE float sin(float x) {
  const float shifted = x * 0.318309886183790672f + 12582912.f;
  const float r = sin_reduced(less_quarter_turns(x, 2 * (shifted - 12582912.f)));
  return bits<float>(bits<uint32_t>(r) ^ (bits<uint32_t>(shifted) << 31));
}

HK_INLINE float cos(float x) {
  const float shifted = (x * 0.318309886183790672f - 0.5f) + 12582912.f;
  const float r = sin_reduced(less_quarter_turns(x, 2 * (shifted - 12582912.f) + 1));
  return bits<float>(bits<uint32_t>(r) ^ (~bits<uint32_t>(shifted) << 31));
}

// acos(x) for -1 <= x <= 1.
HK_INLINE float acos(float x) {
  const float magnitude = x < 0 ? -x : x;
  const bool steep = magnitude > 0.5f;
  const float q = steep ? 0.5f - 0.5f * magnitude : magnitude * magnitude;
  const float t = steep ? std::sqrt(q) : magnitude;
  float p = 4.2163199048e-2f;
  p = p * q + 2.4181311049e-2f;
  p = p * q + 4.5470025998e-2f;
  p = p * q + 7.4953002686e-2f;
  p = p * q + 1.6666752422e-1f;
  const float asin = t + t * q * p;
  const float shallow = 1.57079632679489662f - (x < 0 ? -asin : asin);
  const float turned = x < 0 ? 3.14159265358979324f - 2 * asin : 2 * asin;
  return steep ? turned : shallow;
}

// 2 atanh(t) for |t| <= 1/3.
HK_INLINE float twice_atanh(float t) {
  const float q = t * t;
  float p = 2.f / 15;
  p = p * q + 2.f / 13;
  p = p * q + 2.f / 11;
  p = p * q + 2.f / 9;
  p = p * q + 2.f / 7;
  p = p * q + 2.f / 5;
  p = p * q + 2.f / 3;
  return t * (2 + q * p);
}

// log(1 + y) for 0 <= y <= 1.
HK_INLINE float log1p(float y) { return twice_atanh(y / (2 + y)); }

// x = 2^exponent (1 + fraction), x normal and positive, 1 + fraction within a factor of sqrt(2) of 1.
struct Scientific {
  float exponent, fraction;
};

HK_INLINE Scientific scientific(float x) {
  const uint32_t shifted = bits<uint32_t>(x) - 0x3f3504f3u;
  return {float(int32_t(shifted) >> 23), bits<float>((shifted & 0x7fffffu) + 0x3f3504f3u) - 1};
}

// log(x), x normal and positive, within about one unit in the last place, also near 1.
HK_INLINE float log_normal(float x) {
  const Scientific s = scientific(x);
  const float f = s.fraction, t = f / (2 + f), q = t * t;
  float p = 2.f / 9;
  p = p * q + 2.f / 7;
  p = p * q + 2.f / 5;
  p = p * q + 2.f / 3;
  const float rest = t * (q * p - f);  // 2 t = f - t f: the leading term is exact
  return (s.exponent * 1.42860682030941723212e-6f + rest + f) + s.exponent * 0.693145751953125f;
}

// log(x): -inf at 0, NaN below; inf and NaN stay.
HK_INLINE float log(float x) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const bool tiny = x < 0x1p-126f;
  const float value = log_normal(tiny ? x * 0x1p23f : x) - (tiny ? 15.9423851528787f : 0.f);
  const float above = x < inf ? value : x;
  const float below = x == 0 ? -inf : std::numeric_limits<float>::quiet_NaN();
  return x > 0 ? above : below;
}

HK_INLINE double sin(double x) { return std::sin(x); }
HK_INLINE double cos(double x) { return std::cos(x); }
HK_INLINE double acos(double x) { return std::acos(x); }
HK_INLINE double log1p(double x) { return std::log1p(x); }
HK_INLINE double log(double x) { return std::log(x); }

// log(1 + e^x) and its derivative.
template <class A>
HK_INLINE A softplus(A x) {
  return (x > 0 ? x : A(0)) + log1p(exp(x > 0 ? -x : x));
}

template <class A>
HK_INLINE A sigmoid(A x) {
  const A e = exp(x > 0 ? -x : x);
  return (x > 0 ? A(1) : e) / (1 + e);
}

// Up to four sums over n terms: f(i, a, b, c, d) adds the terms of element i.
struct Sums {
  double a = 0, b = 0, c = 0, d = 0;
};

// Terms that are summed side by side: a vector of the widest instruction set.
template <class A>
constexpr int64_t kLanes = 64 / sizeof(A);

// The sum of the lanes, pairwise.
template <class A>
HK_INLINE double sum_of_lanes(A* lane) {
  for (int64_t width = kLanes<A> / 2; width > 0; width /= 2) {
    for (int64_t j = 0; j < width; ++j) lane[j] += lane[j + width];
  }
  return double(lane[0]);
}

// The sums in type A: each lane takes every kLanes-th term, the lanes are added pairwise after at most kChunk terms,
// and the chunks in double. The error of a long float row thus neither grows with its length nor rests on what the
// compiler makes of the loop.
template <class A, class F>
HK_INLINE Sums sums(int64_t n, F f) {
  constexpr int64_t kChunk = 1024;
  Sums total;
  for (int64_t i0 = 0; i0 < n; i0 += kChunk) {
    const int64_t i1 = i0 + kChunk < n ? i0 + kChunk : n;
    A a[kLanes<A>] = {}, b[kLanes<A>] = {}, c[kLanes<A>] = {}, d[kLanes<A>] = {};
    int64_t i = i0;
    for (; i + kLanes<A> <= i1; i += kLanes<A>) {
#pragma omp simd
      for (int64_t j = 0; j < kLanes<A>; ++j) f(i + j, a[j], b[j], c[j], d[j]);
    }
    for (int64_t j = 0; i + j < i1; ++j) f(i + j, a[j], b[j], c[j], d[j]);
    total.a += sum_of_lanes(a);
    total.b += sum_of_lanes(b);
    total.c += sum_of_lanes(c);
    total.d += sum_of_lanes(d);
  }
  return total;
}

// Sum of a[i] * b[i] in type A.
template <class A, class S, class U>
HK_INLINE double dot(const S* a, const U* b, int64_t n) {
  return sums<A>(n, [&](int64_t i, A& sum, A&, A&, A&) HK_LAMBDA { sum += A(load(a + i)) * A(load(b + i)); }).a;
}

// |v|^2: float where that is safe, double where not. A row of doubles may be too long or too short for its square.
template <class S>
HK_INLINE double sum_squares(const S* v, int64_t n) {
  using A = typename Accumulate<S>::type;
  const double sum = dot<A>(v, v, n);
  if (sizeof(A) == 4 && !(sum > 1e-24 && sum < 1e37)) return dot<double>(v, v, n);
  return sum;
}

// A power of two that brings the largest magnitude of the row near 1; 1 for a row of zeros, or one that is not finite.
inline double balance(const double* v, int64_t n) {
  double largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double magnitude = std::abs(v[i]);
    if (!(magnitude <= largest)) largest = magnitude;
  }
  if (largest == 0 || !std::isfinite(largest)) return 1;
  // Neither the power nor the squares leave the normal numbers, whatever the row.
  return std::ldexp(1.0, -std::clamp(std::ilogb(largest), -1000, 1000));
}

// |v|, right wherever it is a finite number.
template <class S>
HK_INLINE double length(const S* v, int64_t n) {
  const double sum = sum_squares(v, n);
  if constexpr (std::is_same_v<S, double>) {
    if (!(sum > 1e-280 && sum < 1e300)) {
      const double power = balance(v, n);
      const Sums scaled = sums<double>(n, [&](int64_t i, double& square, double&, double&, double&)
                                              HK_LAMBDA { square += (v[i] * power) * (v[i] * power); });
      return std::sqrt(scaled.a) / power;
    }
  }
  return std::sqrt(sum);
}

}  // namespace hyperkernels::simd
