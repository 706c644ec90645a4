// The transforms of hyperkernels/kernels/margin_softmax/negatives.py, one class a kind, made once a row.
//
// at(c, b) is what a class with cosine c and bias b adds: `value` to the log-sum-exp (phi) or to the sum (f), `slope`
// its derivative to c, `bias_slope` that of f to b. Callers take what they need, the rest is not computed.
#pragma once

#include <string_view>

#include "../common/check.h"
#include "../common/math.h"

namespace hyperkernels::margin_softmax {

constexpr int kParameters = 7;  // of the kind that has most

// Each kind, how many parameters it has and whether it is summed as it is.
enum class Kind { kCosine, kQuadratic, kGaussian, kAngle, kSface, kSphereface2, kUniface };

struct KindFacts {
  const char* name;
  Kind kind;
  int64_t parameters;
  bool sum;
};

inline KindFacts kind_facts(std::string_view name) {
  static constexpr KindFacts kFacts[] = {
      {"cosine", Kind::kCosine, 0, false},     {"quadratic", Kind::kQuadratic, 7, false},
      {"gaussian", Kind::kGaussian, 3, false}, {"angle", Kind::kAngle, 2, false},
      {"sface", Kind::kSface, 2, true},        {"sphereface2", Kind::kSphereface2, 3, true},
      {"uniface", Kind::kUniface, 0, true}};
  for (const KindFacts& facts : kFacts) {
    if (name == facts.name) return facts;
  }
  refuse<std::invalid_argument>("unknown kind of negatives: ", name);
}

template <class A>
struct Term {
  A value, slope, bias_slope;
};

// What a log-sum-exp kind and one without a threshold have in common.
struct LogSumExpKind {
  static constexpr bool kSum = false;
  static constexpr bool kHard = false;
};
struct SumKind {
  static constexpr bool kSum = true;
  static constexpr bool kHard = false;
};

template <class A>
HK_INLINE A clamp(A c, A low, A high) {
  const A above = c < low ? low : c;
  return above > high ? high : above;
}

template <class A>
struct Cosine : LogSumExpKind {
  HK_INLINE Cosine(const A*, A) {}
  HK_INLINE Term<A> at(A c, A) const { return {c, 1, 0}; }
};

template <class A>
struct Quadratic : LogSumExpKind {
  static constexpr bool kHard = true;
  A threshold, q2, q1, q0, d1, d0, easy;
  HK_INLINE Quadratic(const A* p, A) : threshold(p[0]), q2(p[1]), q1(p[2]), q0(p[3]), d1(p[4]), d0(p[5]), easy(p[6]) {}
  HK_INLINE bool hard(A c) const { return c > threshold; }
  HK_INLINE Term<A> at(A c, A) const {
    const A value = (q2 * c + q1) * c + q0, slope = d1 * c + d0;
    return {hard(c) ? value : easy * c, hard(c) ? slope : easy, 0};
  }
};

template <class A>
struct Gaussian : LogSumExpKind {
  A center, alpha, rate;
  HK_INLINE Gaussian(const A* p, A) : center(p[0]), alpha(p[1]), rate(-1 / p[2]) {}
  HK_INLINE Term<A> at(A c, A) const {
    const A r = alpha * simd::exp((c - center) * (c - center) * rate);
    return {r * c + r - 1, r, 0};
  }
};

template <class A>
struct Angle : LogSumExpKind {
  A inverse;
  bool straight;
  HK_INLINE Angle(const A* p, A) : inverse(1 / p[0]), straight(p[1] != 0) {}
  HK_INLINE Term<A> at(A c, A) const {
    const A cosine = clamp(c, A(-1), A(1)), theta = simd::acos(cosine), part = theta * inverse;
    const A sine = std::sqrt((1 - cosine) * (1 + cosine));
    A exact = simd::sin(part) * inverse / (sine > 0 ? sine : A(1));
    exact = theta < A(1e-4) ? inverse * inverse : exact;
    // At pi the slope is infinite and its weight is not: it is taken as 0.
    exact = sine <= A(1e-6) && theta > 1 ? A(0) : exact;
    return {simd::cos(part), straight ? A(1) : exact, 0};
  }
};

template <class A>
struct Sface : SumKind {
  A s, steepness, angle;
  HK_INLINE Sface(const A* p, A scale) : s(scale), steepness(p[0]), angle(p[1]) {}
  HK_INLINE Term<A> at(A c, A) const {
    const A weight = s * simd::sigmoid(-steepness * (simd::acos(clamp(c, A(-1), A(1))) - angle));
    return {weight * c, weight, 0};
  }
};

template <class A>
struct Sphereface2 : SumKind {
  A s, margin, power;
  bool one, two, four;  // the binary digits of power - 1
  bool straight;
  HK_INLINE Sphereface2(const A* p, A scale) : s(scale), margin(p[0]), power(p[1]), straight(p[2] != 0) {
    const int lower = int(power) - 1;
    one = lower & 1;
    two = lower & 2;
    four = lower & 4;
  }
  HK_INLINE Term<A> at(A c, A b) const {
    const A half = (clamp(c, A(-1), A(1)) + 1) / 2, square = half * half;
    const A lower = (one ? half : A(1)) * (two ? square : A(1)) * (four ? square * square : A(1));
    const A z = s * (2 * lower * half - 1 + margin) + b, sigmoid = simd::sigmoid(z);
    return {simd::softplus(z), s * sigmoid * (straight ? A(1) : power * lower), sigmoid};
  }
};

template <class A>
struct Uniface : SumKind {
  A s;
  HK_INLINE Uniface(const A*, A scale) : s(scale) {}
  HK_INLINE Term<A> at(A c, A b) const {
    const A free = s * c + b, z = clamp(free, -s, s);
    const A sigmoid = free == z ? simd::sigmoid(z) : A(0);
    return {simd::softplus(z), s * sigmoid, sigmoid};
  }
};

template <class K>
struct Tag {
  using type = K;
};

// Calls f with the Tag of the kind's class.
template <class A, class F>
void with_kind(Kind kind, F f) {
  switch (kind) {
    case Kind::kCosine:
      return f(Tag<Cosine<A>>());
    case Kind::kQuadratic:
      return f(Tag<Quadratic<A>>());
    case Kind::kGaussian:
      return f(Tag<Gaussian<A>>());
    case Kind::kAngle:
      return f(Tag<Angle<A>>());
    case Kind::kSface:
      return f(Tag<Sface<A>>());
    case Kind::kSphereface2:
      return f(Tag<Sphereface2<A>>());
    case Kind::kUniface:
      return f(Tag<Uniface<A>>());
  }
}

}  // namespace hyperkernels::margin_softmax
