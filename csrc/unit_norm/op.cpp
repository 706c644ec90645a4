// unit_norm on the CPU.

#include "../common/op.h"

#include "../common/parallel.h"
#include "rows.h"

namespace hyperkernels::unit_norm {

namespace {

struct Shape {
  int64_t rows, dim;

  explicit Shape(const Tensor& x) {
    HK_CHECK_VALUE(x.dim() > 0, "x must have at least one dimension; got a scalar");
    dim = x.size(-1);
    rows = dim == 0 ? 0 : x.numel() / dim;
  }
};

// Both contiguous; they may be one.
void normalise(const Tensor& x, const Tensor& y, double eps) {
  const Shape shape(x);
  with_storage(x.scalar_type(), "x", [&](auto storage) {
    using S = decltype(storage);
    const S* in = data<S>(x);
    S* out = mutable_data<S>(y);
    parallel_for(0, shape.rows, grain(shape.dim), [&](int64_t begin, int64_t end) {
      const int64_t first = begin * shape.dim;
      simd::run<UnitNormRows>(in + first, out + first, end - begin, shape.dim, eps);
    });
  });
}

Tensor unit_norm(const Tensor& x, double eps) {
  const Tensor in = packed(x), out = empty(sizes_of(x), x.scalar_type());
  normalise(in, out, eps);
  return out;
}

void unit_norm_(const Tensor& x, double eps) {
  Tensor to = x;
  const Tensor rows = packed(x);
  normalise(rows, rows, eps);
  if (!x.is_contiguous()) torch::stable::copy_(to, rows);
}

Tensor unit_norm_backward(const Tensor& grad, const Tensor& x, double eps) {
  const Shape shape(x);
  check_sizes(grad, sizes_of(x), "grad");
  check_dtype(grad, x.scalar_type(), "grad");
  const Tensor g = packed(grad), in = packed(x), out = empty(sizes_of(x), x.scalar_type());
  with_storage(x.scalar_type(), "x", [&](auto storage) {
    using S = decltype(storage);
    const S *change = data<S>(g), *from = data<S>(in);
    S* to = mutable_data<S>(out);
    parallel_for(0, shape.rows, grain(shape.dim), [&](int64_t begin, int64_t end) {
      const int64_t first = begin * shape.dim;
      simd::run<UnitNormBackwardRows>(change + first, from + first, to + first, end - begin, shape.dim, eps);
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  HK_OP(m, "unit_norm", unit_norm);
  HK_OP(m, "unit_norm_", unit_norm_);
  HK_OP(m, "unit_norm_backward", unit_norm_backward);
}

}  // namespace hyperkernels::unit_norm
