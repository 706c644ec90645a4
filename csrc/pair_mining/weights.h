// The vectorised inner loops of the gradient of the pair statistics.
#pragma once

#include "products.h"
#include "statistics.h"

namespace hyperkernels::pair_mining {

// The numbers of one side, [n] each.
template <class A>
struct Terms {
  const A *lower, *upper, *scale, *offset, *value, *c0, *c1, *k0, *k1;
};

// dL/du of a pair that counts, by the numbers of one of its ends. The similarity is computed again from the same
// numbers, but value was rounded, which a large scale magnifies: a share of a log-sum-exp is at most 1.
template <Kind kKind, class A>
HK_INLINE A weight(A u, A scale, A offset, A value, A c0, A c1, A k0, A k1, A p0, A p1) {
  const A constant = k0 + k1 * u;
  if constexpr (kKind == Kind::kLinear) {
    const A power = scale * u - value;
    return (c0 + c1 * u) * simd::exp(power > 0 ? A(0) : power) + constant;
  } else if constexpr (kKind == Kind::kCircle) {
    const A sign = A(scale > 0) - A(scale < 0);  // without a branch: it is constant in some loops
    const A v = sign * u, a = v + p0 < 0 ? A(0) : v + p0;
    const A power = sign * scale * a * (v + p1) - value;
    return c0 * a * simd::exp(power > 0 ? A(0) : power) + constant;
  } else if constexpr (kKind == Kind::kSoftplus) {
    return c0 * simd::sigmoid(scale * u + offset) + constant;
  } else {
    return constant;
  }
}

// Replaces a tile u [rows, ld] by h, the gradients of its pairs through both ends that have numbers. For distances h is
// what the difference of the two vectors is multiplied by, and its sums go to row_sums [rows] and column_sums
// [columns]. mask has room for 2 * columns, h for `columns` numbers.
template <Kind kKind, bool kColumns>
struct WeighRows {
  template <class A>
  static HK_INLINE void run(const Problem* problem, const Terms<A>* of_rows, const Terms<A>* of_columns, A p0, A p1,
                            A* u, int64_t ld, int64_t row, int64_t rows, int64_t column, int64_t columns, Mask<A>* mask,
                            A* h, double* row_sums, double* column_sums) {
    const Terms<A>& r = *of_rows;
    const Similarity similarity = problem->similarity;
    Mask<A>* other = mask + columns;
    for (int64_t j = 0; j < columns; ++j) column_sums[j] = 0;
    for (int64_t i = row; i < row + rows; ++i, u += ld) {
      SelectPairs::run(problem, i, column, columns, mask);
      if constexpr (kColumns)
        within_each(u, of_columns->lower + column, of_columns->upper + column, columns, mask, other);
      WithinBounds::run(static_cast<const A*>(u), r.lower[i], r.upper[i], columns, mask);
      const A scale = r.scale[i], offset = r.offset[i], value = r.value[i];
      const A c0 = r.c0[i], c1 = r.c1[i], k0 = r.k0[i], k1 = r.k1[i];
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j) {
        const A w = weight<kKind>(u[j], scale, offset, value, c0, c1, k0, k1, p0, p1);
        h[j] = mask[j] != 0 ? w : A(0);
      }
      if constexpr (kColumns) {
        add_columns(u, *of_columns, column, columns, p0, p1, other, h);
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) mask[j] |= other[j];
      }
      if (similarity == Similarity::kDot) {
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) u[j] = h[j];
        continue;
      }
      const bool squared = similarity == Similarity::kSquaredEuclidean;
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < columns; ++j) {
        const A slope = squared ? A(2) : -1 / u[j];
        const A by = mask[j] != 0 && u[j] != 0 ? h[j] * slope : A(0);
        u[j] = by;
        sum += double(by);
        column_sums[j] += double(by);
      }
      row_sums[i - row] = sum;
    }
  }

 private:
  template <class A>
  static HK_INLINE void within_each(const A* u, const A* lower, const A* upper, int64_t count, const Mask<A>* mask,
                                    Mask<A>* out) {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) out[j] = u[j] <= lower[j] || u[j] >= upper[j] ? Mask<A>(0) : mask[j];
  }

  template <class A>
  static HK_INLINE void add_columns(const A* u, const Terms<A>& terms, int64_t column, int64_t count, A p0, A p1,
                                    const Mask<A>* mask, A* h) {
    const A *scale = terms.scale + column, *offset = terms.offset + column, *value = terms.value + column;
    const A *c0 = terms.c0 + column, *c1 = terms.c1 + column, *k0 = terms.k0 + column, *k1 = terms.k1 + column;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      const A w = weight<kKind>(u[j], scale[j], offset[j], value[j], c0[j], c1[j], k0[j], k1[j], p0, p1);
      h[j] += mask[j] != 0 ? w : A(0);
    }
  }
};

// out = the sum over planes of sums [planes, n, dim], less x by the sum over planes of weights [planes, n], which is
// null where there are none. Of `count` rows; out may be the first plane.
struct FinishGradient {
  template <class T, class A>
  static HK_INLINE void run(A* sums, const double* weights, const T* x, int64_t planes, int64_t n, int64_t dim,
                            int64_t count, T* out) {
    for (int64_t i = 0; i < count; ++i, sums += dim, x += dim, out += dim) {
      double weight = 0;
      for (int64_t plane = 0; plane < planes; ++plane) {
        if (weights != nullptr) weight += weights[plane * n + i];
        if (plane > 0) AddScaled::run(static_cast<const A*>(sums + plane * n * dim), A(1), dim, sums);
      }
      // A row without pairs may hold anything.
      if (weight != 0) {
#pragma omp simd
        for (int64_t k = 0; k < dim; ++k) sums[k] = A(double(sums[k]) - weight * double(simd::load(x + k)));
      }
#pragma omp simd
      for (int64_t k = 0; k < dim; ++k) simd::store(out + k, sums[k]);
    }
  }
};

}  // namespace hyperkernels::pair_mining
