// Products of pairs' factors and their ends, in which pairs that do not count see nothing of an end that is not finite.
#pragma once

#include <cstring>

#include "../common/parallel.h"
#include "../common/rows.h"
#include "problem.h"

namespace hyperkernels::pair_mining {

// sums [factors.rows, D] += the products with the ends that are not finite, where their factor is not zero.
struct AddNotFinite {
  template <class A>
  static HK_INLINE void run(const Matrix<A>* factors, const Matrix<A>* ends, const uint8_t* finite, A* sums) {
    const int64_t dim = ends->columns;
    for (int64_t j = 0; j < ends->rows; ++j) {
      if (finite[j] != 0) continue;
      for (int64_t i = 0; i < factors->rows; ++i) {
        const A by = factors->data[i * factors->row_stride + j * factors->column_stride];
        if (by != 0) AddScaled::run(ends->data + j * ends->row_stride, dim, by, sums + i * dim);
      }
    }
  }
};

// sums [factors.rows, D] += factors ends. A product with zero counts as zero, also that of an end that is not finite:
// such ends are zeros in the GEMM, which reads them from `tame`, and are added on their own.
template <class A>
void add_product(const Matrix<A>& factors, const Matrix<A>& ends, const uint8_t* finite, A* sums, Buffer<A>& tame) {
  const int64_t dim = ends.columns;
  if (std::memchr(finite, 0, size_t(ends.rows)) == nullptr) return multiply(factors, ends, sums, dim, true);
  tame.reserve(ends.rows * dim);
  for (int64_t j = 0; j < ends.rows; ++j) {
    A* to = tame.data() + j * dim;
    if (finite[j] != 0) {
      std::copy_n(ends.data + j * ends.row_stride, dim, to);
    } else {
      std::fill_n(to, dim, A(0));
    }
  }
  multiply(factors, matrix<A>(tame.data(), ends.rows, dim, dim), sums, dim, true);
  simd::run<AddNotFinite>(&factors, &ends, finite, sums);
}

template <class A>
void fill_zero(A* numbers, int64_t count) {
  parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) { std::fill(numbers + begin, numbers + end, A(0)); });
}

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
        if (plane > 0) Add::run(static_cast<const A*>(sums + plane * n * dim), dim, sums);
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
