// unit_norm and its gradient over rows of a contiguous [rows, D] array, each read once from memory and written once.
#pragma once

#include "../common/sums.h"

namespace hyperkernels::unit_norm {

using simd::load;
using simd::store;

// A factor that float can hold without losing digits, and whose products with ordinary numbers neither vanish nor
// overflow.
HK_INLINE bool ordinary(double v) { return v > 1e-30 && v < 1e30; }

struct UnitNormRows {
  template <class S>
  static HK_INLINE void run(const S* x, S* y, int64_t rows, int64_t dim, double eps) {
    using A = Accumulate<S>;
    for (int64_t row = 0; row < rows; ++row, x += dim, y += dim) {
      const double norm = simd::length(x, dim);
      const double divisor = norm < eps ? eps : norm;
      if (sizeof(A) == 4 && ordinary(divisor)) {
        const A inverse = A(1 / divisor);
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) store(y + i, load(x + i) * inverse);
      } else {
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) store(y + i, A(double(load(x + i)) / divisor));
      }
    }
  }
};

// dx = (g - y <y, g>) / |x|; g / eps where the floor holds.
struct UnitNormBackwardRows {
  template <class S>
  static HK_INLINE void run(const S* g, const S* x, S* dx, int64_t rows, int64_t dim, double eps) {
    using A = Accumulate<S>;
    for (int64_t row = 0; row < rows; ++row, g += dim, x += dim, dx += dim) {
      const double norm = simd::length(x, dim);
      const double divisor = norm < eps ? eps : norm;
      const bool projects = !(norm < eps);
      const double product = simd::dot<A>(x, g, dim);
      if (sizeof(A) == 4 && ordinary(divisor) && ordinary(std::abs(product))) {
        const A inverse = A(1 / divisor);
        const A radial = projects ? A(product / divisor) : A(0);
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) store(dx + i, (load(g + i) - load(x + i) * inverse * radial) * inverse);
      } else {
        if (projects) {
          const double radial =
              simd::sums<double>(dim, [&](int64_t i, double& sum, double&, double&, double&) HK_LAMBDA {
                sum += double(load(x + i)) / divisor * double(load(g + i));
              }).a;
#pragma omp simd
          for (int64_t i = 0; i < dim; ++i) {
            store(dx + i, A((double(load(g + i)) - double(load(x + i)) / divisor * radial) / divisor));
          }
        } else {
#pragma omp simd
          for (int64_t i = 0; i < dim; ++i) store(dx + i, A(double(load(g + i)) / divisor));
        }
      }
    }
  }
};

}  // namespace hyperkernels::unit_norm
