// Sums over rows, whose order is stated: their bits depend on the instruction set alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "storage.h"

namespace hyperkernels::simd {

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

template <class S>
HK_RARE double sum_squares_in_double(const S* v, int64_t n) {
  return dot<double>(v, v, n);
}

// |v|^2: float where that is safe, double where not. A row of doubles may be too long or too short for its square.
template <class S>
HK_INLINE double sum_squares(const S* v, int64_t n) {
  using A = typename Accumulate<S>::type;
  const double sum = dot<A>(v, v, n);
  if (sizeof(A) == 4 && !(sum > 1e-24 && sum < 1e37)) return sum_squares_in_double(v, n);
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

// |v| of a row whose square overflows or vanishes.
HK_RARE inline double balanced_length(const double* v, int64_t n) {
  const double power = balance(v, n);
  const Sums scaled = sums<double>(n, [&](int64_t i, double& square, double&, double&, double&)
                                          HK_LAMBDA { square += (v[i] * power) * (v[i] * power); });
  return std::sqrt(scaled.a) / power;
}

// |v|, right wherever it is a finite number.
template <class S>
HK_INLINE double length(const S* v, int64_t n) {
  const double sum = sum_squares(v, n);
  if constexpr (std::is_same_v<S, double>) {
    if (!(sum > 1e-280 && sum < 1e300)) return balanced_length(v, n);
  }
  return std::sqrt(sum);
}

}  // namespace hyperkernels::simd
