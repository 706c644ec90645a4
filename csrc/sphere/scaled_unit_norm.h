// Directions of rows times a scale per dimension: row r of x takes row r mod S of the scale.
#pragma once

#include "rows.h"

namespace hyperkernels::sphere {

template <class A>
struct Scaled {
  InRows<A> x;
  const A* scale;  // [scales, dim]
  int64_t scales, dim;
};

struct ScaledRows {
  template <class A>
  static HK_INLINE void run(const Scaled<A>* of, OutRows<A> out, int64_t begin, int64_t end) {
    const int64_t dim = of->dim;
    std::vector<A> scratch(dim + out.scratch(dim));
    for (int64_t row = begin; row < end; ++row) {
      const Row<A> x = bring(of->x, row, scratch.data(), dim);
      const A* scale = of->scale + row % of->scales * dim;
      const A unit = A(1 / x.norm);
      A* to = out.row(row, scratch.data() + dim, dim);
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i) to[i] = x.data[i] * unit * scale[i];
      out.finish(row, to, dim);
    }
  }
};

// dx = (s - (s . x^) x^) / |x| with s = g scale; dscale is the sum over rows of g x^.
struct ScaledBackwardRows {
  template <class A>
  static HK_INLINE void run(const Scaled<A>* of, InRows<A> grad, OutRows<A> dx, double* dscale, int64_t begin,
                            int64_t end) {
    const int64_t dim = of->dim;
    std::vector<A> scratch(3 * dim);
    for (int64_t row = begin; row < end; ++row) {
      const Row<A> x = bring(of->x, row, scratch.data(), dim);
      const A* g = grad.read(row, scratch.data() + dim, dim);
      const int64_t which = row % of->scales * dim;
      const A *scale = of->scale + which, *from = x.data;
      if (dx.wanted()) {
        const Sums s = sums<A>(dim, [&](int64_t i, A& sx, A&, A&, A&) HK_LAMBDA { sx += g[i] * scale[i] * from[i]; });
        const A along = A(s.a / (x.norm * x.norm)), over = A(x.inverse);
        A* to = dx.row(row, scratch.data() + 2 * dim, dim);
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) to[i] = (g[i] * scale[i] - along * from[i]) * over;
        dx.finish(row, to, dim);
      }
      if (dscale != nullptr) {
        // Rows whose terms cancel leave the rounding of each: in double, and for doubles by the division itself.
        const double norm = x.norm, unit = 1 / norm;
        double* to = dscale + which;
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) {
          to[i] += double(g[i]) * (sizeof(A) == 8 ? double(from[i]) / norm : double(from[i]) * unit);
        }
      }
    }
  }
};

}  // namespace hyperkernels::sphere
