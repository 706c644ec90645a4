// unit_norm and its gradient over rows, each read once from memory and written once.
#pragma once

#include <vector>

#include "../common/rows.h"
#include "../common/sums.h"

namespace hyperkernels::unit_norm {

// A factor that float can hold without losing digits, and whose products with ordinary numbers neither vanish nor
// overflow.
HK_INLINE bool ordinary(double v) { return v > 1e-30 && v < 1e30; }

struct UnitNormRows {
  template <class A>
  static HK_INLINE void run(InRows<A> from, OutRows<A> to, int64_t dim, double eps, int64_t begin, int64_t end) {
    std::vector<A> scratch(to.scratch(dim));
    for (int64_t row = begin; row < end; ++row) {
      const A* x = from.read(row, scratch.data(), dim);
      A* y = to.row(row, scratch.data(), dim);
      const double norm = simd::length(x, dim);
      const double divisor = norm < eps ? eps : norm;
      if (sizeof(A) == 4 && ordinary(divisor)) {
        const A inverse = A(1 / divisor);
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) y[i] = x[i] * inverse;
      } else {
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) y[i] = A(double(x[i]) / divisor);
      }
      to.finish(row, y, dim);
    }
  }
};

// dx = (g - y <y, g>) / |x|; g / eps where the floor holds.
struct UnitNormBackwardRows {
  template <class A>
  static HK_INLINE void run(InRows<A> grad, InRows<A> from, OutRows<A> to, int64_t dim, double eps, int64_t begin,
                            int64_t end) {
    const int64_t extra = to.scratch(dim);
    std::vector<A> scratch(2 * extra);
    for (int64_t row = begin; row < end; ++row) {
      const A* x = from.read(row, scratch.data(), dim);
      const A* g = grad.read(row, scratch.data() + extra, dim);
      A* dx = to.row(row, scratch.data(), dim);
      const double norm = simd::length(x, dim);
      const double divisor = norm < eps ? eps : norm;
      const bool projects = !(norm < eps);
      const double product = simd::dot<A>(x, g, dim);
      if (sizeof(A) == 4 && ordinary(divisor) && ordinary(std::abs(product))) {
        const A inverse = A(1 / divisor);
        const A radial = projects ? A(product / divisor) : A(0);
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) dx[i] = (g[i] - x[i] * inverse * radial) * inverse;
      } else {
        if (projects) {
          const double radial =
              simd::sums<double>(dim, [&](int64_t i, double& sum, double&, double&, double&) HK_LAMBDA {
                sum += double(x[i]) / divisor * double(g[i]);
              }).a;
#pragma omp simd
          for (int64_t i = 0; i < dim; ++i) {
            dx[i] = A((double(g[i]) - double(x[i]) / divisor * radial) / divisor);
          }
        } else {
#pragma omp simd
          for (int64_t i = 0; i < dim; ++i) dx[i] = A(double(g[i]) / divisor);
        }
      }
      to.finish(row, dx, dim);
    }
  }
};

}  // namespace hyperkernels::unit_norm
