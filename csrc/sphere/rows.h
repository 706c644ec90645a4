// What the kernels of the sphere share: rows of matrices, brought into a form that every pass can read without a
// second thought, and sums over them.
//
// Rows come from memory once: all passes but the first find them in the cache. Sums and what is computed from them are
// double; the passes over elements are in the accumulator's type.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "../common/math.h"
#include "../common/rows.h"
#include "../common/sums.h"

namespace hyperkernels::sphere {

// A shorter row has no direction: it counts as 0 and gets a gradient of 0.
constexpr double kEps = 1e-12;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// A row whose squares and products neither overflow nor vanish.
template <class A>
struct Row {
  const A* data;
  double norm;     // of data; 1 where the row is short
  double inverse;  // 1 / the length of the row as it was given; 0 where it is short
  bool is_short;   // data is 0
};

using simd::Sums;
using simd::sums;

// Whether the squares and products of a row of that length are safe.
HK_INLINE bool ordinary(double length) { return length > 1e-6 && length < 1e6; }

// A row of that length, which is not ordinary.
template <class A>
HK_RARE Row<A> rescaled(const A* data, double length, A* scratch, int64_t dim) {
  if (length < kEps) {
    std::fill(scratch, scratch + dim, A(0));
    return {scratch, 1, 0, true};
  }
  const bool finite = length < std::numeric_limits<double>::infinity();
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) scratch[i] = A(double(data[i]) / length);
  return {scratch, finite ? 1 : kNaN, finite ? 1 / length : kNaN, false};
}

template <class A>
HK_INLINE Row<A> bring(const A* data, A* scratch, int64_t dim) {
  const double length = simd::length(data, dim);
  if (ordinary(length)) return {data, length, 1 / length, false};
  return rescaled(data, length, scratch, dim);
}

template <class A>
HK_INLINE Row<A> bring(const InRows<A>& rows, int64_t row, A* scratch, int64_t dim) {
  return bring(rows.read(row, scratch, dim), scratch, dim);
}

// Two rows and their product, in one pass where both are ordinary. The scratch holds two rows.
template <class A>
struct Pair {
  Row<A> x, y;
  double product;
};

// Rows that are not both ordinary.
template <class A>
HK_RARE Pair<A> rescaled(const A* x, const A* y, A* scratch, int64_t dim) {
  const Row<A> one = bring(x, scratch, dim), other = bring(y, scratch + dim, dim);
  return {one, other, simd::dot<A>(one.data, other.data, dim)};
}

template <class A>
HK_INLINE Pair<A> bring(const InRows<A>& x, const InRows<A>& y, int64_t row, A* scratch, int64_t dim) {
  const A *a = x.read(row, scratch, dim), *b = y.read(row, scratch + dim, dim);
  const Sums s = sums<A>(dim, [&](int64_t i, A& xx, A& yy, A& xy, A&) HK_LAMBDA {
    xx += a[i] * a[i];
    yy += b[i] * b[i];
    xy += a[i] * b[i];
  });
  const double first = std::sqrt(s.a), second = std::sqrt(s.b);
  if (ordinary(first) && ordinary(second)) return {{a, first, 1 / first, false}, {b, second, 1 / second, false}, s.c};
  return rescaled(a, b, scratch, dim);
}

}  // namespace hyperkernels::sphere
