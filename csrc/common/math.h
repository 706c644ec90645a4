// Functions of one number that loops are vectorised over, in float and in double. Each says how far it is from the
// true value at most, and where; tests/test_simd_math.py holds the figures.
#pragma once

#include <cmath>
#include <limits>

#include "storage.h"

namespace hyperkernels::simd {

// e^x for x <= 5, within 1.2 units in the last place; 0 where that is below the smallest normal number.
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

// Sine and cosine for |x| <= 3000, within eps of 1 (float).
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

// acos(x) for -1 <= x <= 1, within 3 eps of 1 (float).
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

// log(1 + y) for 0 <= y <= 1, within 3 units in the last place (float).
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

// log(x), within 1.5 units in the last place (float): -inf at 0, NaN below; inf and NaN stay.
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

// log(1 + e^x), within 4 units in the last place, and its derivative, within 3; for |x| <= 80.
template <class A>
HK_INLINE A softplus(A x) {
  return (x > 0 ? x : A(0)) + log1p(exp(x > 0 ? -x : x));
}

template <class A>
HK_INLINE A sigmoid(A x) {
  const A e = exp(x > 0 ? -x : x);
  return (x > 0 ? A(1) : e) / (1 + e);
}

}  // namespace hyperkernels::simd
