#include "residual.h"

#include "arguments.h"

namespace hyperkernels::sphere {

namespace {

// The inputs of both ops, checked.
struct Given {
  Tensor h, block, alpha;
  Dtype dtype, wide;
  int64_t n, dim;

  Given(const Tensor& a, const Tensor& b, const Tensor& steps)
      : h(rows_like(a, a, "h")),
        block(rows_like(b, a, "block")),
        alpha(numbers(steps, {a.size(1)}, accumulate_dtype(a.scalar_type()), "alpha")) {
    dtype = h.scalar_type();
    wide = accumulate_dtype(dtype);
    n = h.size(0);
    dim = h.size(1);
  }

  template <class A>
  Residuals<A> residuals() const {
    return {in_rows<A>(h), in_rows<A>(block), data<A>(alpha), dim};
  }
};

Tensor sphere_residual(const Tensor& h, const Tensor& block, const Tensor& alpha) {
  const Given given(h, block, alpha);
  const Tensor out = empty({given.n, given.dim}, given.dtype);
  with_accumulator(given.dtype, "h", [&](auto zero) {
    using A = decltype(zero);
    const Residuals<A> residuals = given.residuals<A>();
    const OutRows<A> to = out_rows<A>(out);
    if (!to.wanted()) return;
    parallel_for(0, given.n, grain(given.dim),
                 [&](int64_t begin, int64_t end) { simd::run<ResidualRows>(&residuals, to, begin, end); });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> sphere_residual_backward(const Tensor& grad, const Tensor& h, const Tensor& block,
                                                            const Tensor& alpha, bool need_h, bool need_block,
                                                            bool need_alpha) {
  const Given given(h, block, alpha);
  const int64_t n = given.n, dim = given.dim, count = parts_of(n);
  const Tensor g = rows_like(grad, h, "grad");
  const Tensor dh = empty_if(need_h, {n, dim}, given.dtype), dblock = empty_if(need_block, {n, dim}, given.dtype);
  const Tensor dalpha = empty_if(need_alpha, {dim}, given.wide);
  std::vector<double> parts(need_alpha ? count * dim : 0);
  with_accumulator(given.dtype, "h", [&](auto zero) {
    using A = decltype(zero);
    const Residuals<A> residuals = given.residuals<A>();
    const InRows<A> from = in_rows<A>(g);
    const OutRows<A> to_h = out_rows<A>(dh), to_block = out_rows<A>(dblock);
    double* sums = parts.empty() ? nullptr : parts.data();
    if (!to_h.wanted() && !to_block.wanted() && sums == nullptr) return;
    parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        simd::run<ResidualBackwardRows>(&residuals, from, to_h, to_block, sums == nullptr ? sums : sums + part * dim,
                                        part * n / count, (part + 1) * n / count);
      }
    });
    if (sums != nullptr) sum_parts(parts, count, dim, result<A>(dalpha));
  });
  return {dh, dblock, dalpha};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  HK_OP(m, "sphere_residual", sphere_residual);
  HK_OP(m, "sphere_residual_backward", sphere_residual_backward);
}

}  // namespace hyperkernels::sphere
