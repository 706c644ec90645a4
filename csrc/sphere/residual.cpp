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

  template <class S>
  Residuals<S> residuals() const {
    return {rows_of<S>(h), rows_of<S>(block), data<Accumulate<S>>(alpha), dim};
  }
};

Tensor sphere_residual(const Tensor& h, const Tensor& block, const Tensor& alpha) {
  const Given given(h, block, alpha);
  const Tensor out = empty({given.n, given.dim}, given.dtype);
  with_storage(given.dtype, "h", [&](auto storage) {
    using S = decltype(storage);
    const Residuals<S> residuals = given.residuals<S>();
    S* to = result<S>(out);
    if (to == nullptr) return;
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
  const Tensor g = packed(rows_like(grad, h, "grad"));
  const Tensor dh = empty_if(need_h, {n, dim}, given.dtype), dblock = empty_if(need_block, {n, dim}, given.dtype);
  const Tensor dalpha = empty_if(need_alpha, {dim}, given.wide);
  std::vector<double> parts(need_alpha ? count * dim : 0);
  with_storage(given.dtype, "h", [&](auto storage) {
    using S = decltype(storage);
    const Residuals<S> residuals = given.residuals<S>();
    const S* from = data<S>(g);
    S *to_h = result<S>(dh), *to_block = result<S>(dblock);
    double* sums = parts.empty() ? nullptr : parts.data();
    if (to_h == nullptr && to_block == nullptr && sums == nullptr) return;
    parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        simd::run<ResidualBackwardRows>(&residuals, from, to_h, to_block, sums == nullptr ? sums : sums + part * dim,
                                        part * n / count, (part + 1) * n / count);
      }
    });
    if (sums != nullptr) sum_parts(parts, count, dim, result<Accumulate<S>>(dalpha));
  });
  return {dh, dblock, dalpha};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  HK_OP(m, "sphere_residual", sphere_residual);
  HK_OP(m, "sphere_residual_backward", sphere_residual_backward);
}

}  // namespace hyperkernels::sphere
