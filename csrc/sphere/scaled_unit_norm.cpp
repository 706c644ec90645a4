#include "scaled_unit_norm.h"

#include "arguments.h"

namespace hyperkernels::sphere {

namespace {

// The inputs of both ops, checked.
struct Given {
  Tensor x, scale;
  Dtype dtype, wide;
  int64_t n, dim, scales;

  Given(const Tensor& rows, const Tensor& factors)
      : x(rows_like(rows, rows, "x")),
        scale(numbers(factors, {factors.size(0), rows.size(1)}, accumulate_dtype(rows.scalar_type()), "scale")) {
    dtype = x.scalar_type();
    wide = accumulate_dtype(dtype);
    n = x.size(0);
    dim = x.size(1);
    scales = scale.size(0);
    HK_CHECK_VALUE(scales > 0 ? n % scales == 0 : n == 0, "the rows of scale must divide those of x, ", n, "; got ",
                   scales);
  }

  template <class A>
  Scaled<A> scaled() const {
    return {in_rows<A>(x), data<A>(scale), scales, dim};
  }
};

Tensor scaled_unit_norm(const Tensor& x, const Tensor& scale) {
  const Given given(x, scale);
  const Tensor out = empty({given.n, given.dim}, given.dtype);
  with_accumulator(given.dtype, "x", [&](auto zero) {
    using A = decltype(zero);
    const Scaled<A> scaled = given.scaled<A>();
    const OutRows<A> to = out_rows<A>(out);
    if (!to.wanted()) return;
    parallel_for(0, given.n, grain(given.dim),
                 [&](int64_t begin, int64_t end) { simd::run<ScaledRows>(&scaled, to, begin, end); });
  });
  return out;
}

std::tuple<Tensor, Tensor> scaled_unit_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& scale,
                                                     bool need_x, bool need_scale) {
  const Given given(x, scale);
  const int64_t n = given.n, dim = given.dim, scales = given.scales;
  const Tensor g = rows_like(grad, x, "grad");
  const Tensor dx = empty_if(need_x, {n, dim}, given.dtype), dscale = empty_if(need_scale, {scales, dim}, given.wide);
  const int64_t turns = scales > 0 ? n / scales : 0, count = parts_of(turns);
  std::vector<double> parts(need_scale ? count * scales * dim : 0);
  // Where there are few turns through the scale the threads share its rows as well.
  const int64_t shares = std::clamp<int64_t>(64 / count, 1, std::max<int64_t>(1, scales));
  with_accumulator(given.dtype, "x", [&](auto zero) {
    using A = decltype(zero);
    const Scaled<A> scaled = given.scaled<A>();
    const InRows<A> from = in_rows<A>(g);
    const OutRows<A> to = out_rows<A>(dx);
    double* sums = parts.empty() ? nullptr : parts.data();
    if (!to.wanted() && sums == nullptr) return;
    parallel_for(0, count * shares, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t part = unit / shares, share = unit % shares;
        double* own = sums == nullptr ? nullptr : sums + part * scales * dim;
        for (int64_t turn = part * turns / count; turn < (part + 1) * turns / count; ++turn) {
          simd::run<ScaledBackwardRows>(&scaled, from, to, own, turn * scales + share * scales / shares,
                                        turn * scales + (share + 1) * scales / shares);
        }
      }
    });
    if (sums != nullptr) sum_parts(parts, count, scales * dim, result<A>(dscale));
  });
  return {dx, dscale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  HK_OP(m, "scaled_unit_norm", scaled_unit_norm);
  HK_OP(m, "scaled_unit_norm_backward", scaled_unit_norm_backward);
}

}  // namespace hyperkernels::sphere
