// unit_norm on the CPU: rows of a contiguous [rows, D] array, each read once from memory and written once.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "../simd.h"
#include "../storage.h"

namespace hyperkernels {

namespace {

using simd::load;
using simd::store;

// A factor that float can hold without losing digits, and whose products with ordinary numbers neither vanish nor
// overflow.
HK_INLINE bool ordinary(double v) { return v > 1e-30 && v < 1e30; }

struct UnitNormRows {
  template <class S>
  static HK_INLINE void run(const S* x, S* y, int64_t rows, int64_t dim, double eps) {
    using A = typename simd::Accumulate<S>::type;
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
    using A = typename simd::Accumulate<S>::type;
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

void check_rows(const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() > 0, "x must have at least one dimension; got a scalar");
}

template <class F>
void over_rows(const at::Tensor& x, F f) {
  const int64_t dim = x.size(-1);
  if (x.numel() == 0) return;
  const int64_t grain = std::max<int64_t>(1, at::internal::GRAIN_SIZE / dim);
  at::parallel_for(0, x.numel() / dim, grain, [&](int64_t begin, int64_t end) { f(begin * dim, end - begin, dim); });
}

void normalise(const at::Tensor& x, const at::Tensor& y, double eps) {
  with_storage(x.scalar_type(), "x", [&](auto storage) {
    using S = decltype(storage);
    const auto* in = static_cast<const S*>(x.const_data_ptr());
    auto* out = static_cast<S*>(y.mutable_data_ptr());
    over_rows(x, [&](int64_t offset, int64_t rows, int64_t dim) {
      simd::run<UnitNormRows>(in + offset, out + offset, rows, dim, eps);
    });
  });
}

at::Tensor unit_norm(const at::Tensor& x, double eps) {
  check_rows(x);
  const at::Tensor in = x.contiguous();
  at::Tensor y = at::empty_like(in);
  normalise(in, y, eps);
  return y;
}

void unit_norm_(at::Tensor& x, double eps) {
  check_rows(x);
  const at::Tensor in = x.contiguous();
  normalise(in, in, eps);
  if (!in.is_same(x)) x.copy_(in);
}

at::Tensor unit_norm_backward(const at::Tensor& grad, const at::Tensor& x, double eps) {
  check_rows(x);
  TORCH_CHECK_VALUE(grad.sizes() == x.sizes() && grad.scalar_type() == x.scalar_type(),
                    "grad must have the shape and dtype of x");
  const at::Tensor g = grad.contiguous();
  const at::Tensor in = x.contiguous();
  at::Tensor dx = at::empty_like(in);
  with_storage(x.scalar_type(), "x", [&](auto storage) {
    using S = decltype(storage);
    const auto* gradient = static_cast<const S*>(g.const_data_ptr());
    const auto* input = static_cast<const S*>(in.const_data_ptr());
    auto* out = static_cast<S*>(dx.mutable_data_ptr());
    over_rows(in, [&](int64_t offset, int64_t rows, int64_t dim) {
      simd::run<UnitNormBackwardRows>(gradient + offset, input + offset, out + offset, rows, dim, eps);
    });
  });
  return dx;
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  m.impl("unit_norm", unit_norm);
  m.impl("unit_norm_", unit_norm_);
  m.impl("unit_norm_backward", unit_norm_backward);
}

}  // namespace hyperkernels
