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

  // Of a contiguous tensor.
  template <class A>
  InRows<A> in(const Tensor& x) const {
    return {x.const_data_ptr(), dim, stored_as(x.scalar_type())};
  }
};

// Both contiguous; they may be one.
void normalise(const Tensor& x, const Tensor& y, double eps) {
  const Shape shape(x);
  with_accumulator(x.scalar_type(), "x", [&](auto zero) {
    using A = decltype(zero);
    const InRows<A> from = shape.in<A>(x);
    const OutRows<A> to = out_rows<A>(y);
    parallel_for(0, shape.rows, grain(shape.dim),
                 [&](int64_t begin, int64_t end) { simd::run<UnitNormRows>(from, to, shape.dim, eps, begin, end); });
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
  with_accumulator(x.scalar_type(), "x", [&](auto zero) {
    using A = decltype(zero);
    const InRows<A> change = shape.in<A>(g), from = shape.in<A>(in);
    const OutRows<A> to = out_rows<A>(out);
    parallel_for(0, shape.rows, grain(shape.dim), [&](int64_t begin, int64_t end) {
      simd::run<UnitNormBackwardRows>(change, from, to, shape.dim, eps, begin, end);
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
