// The vectorised inner loops of the gradient of the pair statistics.
#pragma once

#include "../common/math.h"
#include "statistics.h"

namespace hyperkernels::pair_mining {

// The numbers of one side, [n] each, all present.
template <class A>
struct PairTerms {
  const A *lower, *upper, *scale, *offset, *lse, *c0, *c1, *k0, *k1;
};

// A tile u [rows, ld] that becomes h, the gradients of its pairs.
template <class A>
struct WeighTile {
  const PairSelection* selection;
  Similarity similarity;
  const PairTerms<A>*of_rows, *of_columns;
  A p0, p1;
  A* u;
  int64_t ld, row, rows, column, columns;
  Mask<A>* mask;        // [2, columns], memory
  A* h;                 // [columns], memory
  double* row_sums;     // [rows]
  double* column_sums;  // [columns]
};

// dL/du of a pair that counts, by the numbers of one of its ends. The similarity is computed again from the same
// numbers, but lse was rounded, which a large scale magnifies: a share of a log-sum-exp is at most 1.
template <Kind kKind, class A>
HK_INLINE A weight(A u, A scale, A offset, A lse, A c0, A c1, A k0, A k1, A p0, A p1) {
  const A constant = k0 + k1 * u;
  if constexpr (kKind == Kind::kLinear) {
    const A power = scale * u - lse;
    return (c0 + c1 * u) * simd::exp(power > 0 ? A(0) : power) + constant;
  } else if constexpr (kKind == Kind::kCircle) {
    const A sign = A(scale > 0) - A(scale < 0);  // without a branch: it is constant in some loops
    const A v = sign * u, a = v + p0 < 0 ? A(0) : v + p0;
    const A power = sign * scale * a * (v + p1) - lse;
    return c0 * a * simd::exp(power > 0 ? A(0) : power) + constant;
  } else if constexpr (kKind == Kind::kSoftplus) {
    return c0 * simd::sigmoid(scale * u + offset) + constant;
  } else {
    return constant;
  }
}

// h holds the gradients through both ends that have numbers: the columns where kColumns. For distances h is what the
// difference of the two vectors is multiplied by, and its sums go to row_sums and column_sums.
template <Kind kKind, bool kColumns>
struct WeighRows {
  template <class A>
  static HK_INLINE void run(const WeighTile<A>* tile) {
    const PairTerms<A>&r = *tile->of_rows, &of_columns = *tile->of_columns;
    const Similarity similarity = tile->similarity;
    const A p0 = tile->p0, p1 = tile->p1;
    const int64_t row = tile->row, column = tile->column, columns = tile->columns;
    Mask<A>*mask = tile->mask, *other = mask + columns;
    double* column_sums = tile->column_sums;
    A *u = tile->u, *h = tile->h;
    for (int64_t j = 0; j < columns; ++j) column_sums[j] = 0;
    for (int64_t i = row; i < row + tile->rows; ++i, u += tile->ld) {
      select_pairs(*tile->selection, i, column, columns, mask);
      if constexpr (kColumns) {
        keep_within_each(u, of_columns.lower + column, of_columns.upper + column, columns, mask, other);
      }
      keep_within(static_cast<const A*>(u), r.lower[i], r.upper[i], columns, mask);
      const A scale = r.scale[i], offset = r.offset[i], lse = r.lse[i];
      const A c0 = r.c0[i], c1 = r.c1[i], k0 = r.k0[i], k1 = r.k1[i];
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j) {
        const A w = weight<kKind>(u[j], scale, offset, lse, c0, c1, k0, k1, p0, p1);
        h[j] = mask[j] != 0 ? w : A(0);
      }
      if constexpr (kColumns) {
        add_columns(u, of_columns, column, columns, p0, p1, other, h);
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
      tile->row_sums[i - row] = sum;
    }
  }

 private:
  template <class A>
  static HK_INLINE void keep_within_each(const A* u, const A* lower, const A* upper, int64_t count, const Mask<A>* mask,
                                         Mask<A>* out) {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) out[j] = u[j] <= lower[j] || u[j] >= upper[j] ? Mask<A>(0) : mask[j];
  }

  template <class A>
  static HK_INLINE void add_columns(const A* u, const PairTerms<A>& terms, int64_t column, int64_t count, A p0, A p1,
                                    const Mask<A>* mask, A* h) {
    const A *scale = terms.scale + column, *offset = terms.offset + column, *lse = terms.lse + column;
    const A *c0 = terms.c0 + column, *c1 = terms.c1 + column, *k0 = terms.k0 + column, *k1 = terms.k1 + column;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      const A w = weight<kKind>(u[j], scale[j], offset[j], lse[j], c0[j], c1[j], k0[j], k1[j], p0, p1);
      h[j] += mask[j] != 0 ? w : A(0);
    }
  }
};

}  // namespace hyperkernels::pair_mining
