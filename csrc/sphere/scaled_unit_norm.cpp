// Directions of rows times a scale per dimension: row r of x takes row r mod S of the scale.

#include <torch/library.h>

#include "rows.h"

namespace hyperkernels::sphere {

namespace {

using simd::store;

template <class S>
struct Scaled {
  Matrix<S> x;
  const Accumulate<S>* scale;  // [scales, dim]
  int64_t scales, dim;
};

struct ScaledRows {
  template <class S>
  static HK_INLINE void run(const Scaled<S>* of, S* out, int64_t begin, int64_t end) {
    using A = Accumulate<S>;
    const int64_t dim = of->dim;
    std::vector<A> scratch(dim);
    for (int64_t row = begin; row < end; ++row) {
      const Row<A> x = bring(of->x.row(row), scratch.data(), dim);
      const A* scale = of->scale + row % of->scales * dim;
      const A unit = A(1 / x.norm);
      S* to = out + row * dim;
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i) store(to + i, x.data[i] * unit * scale[i]);
    }
  }
};

// dx = (s - (s . x^) x^) / |x| with s = g scale; dscale is the sum over rows of g x^.
struct ScaledBackwardRows {
  template <class S>
  static HK_INLINE void run(const Scaled<S>* of, const S* grad, S* dx, double* dscale, int64_t begin, int64_t end) {
    using A = Accumulate<S>;
    const int64_t dim = of->dim;
    std::vector<A> scratch(2 * dim);
    for (int64_t row = begin; row < end; ++row) {
      const Row<A> x = bring(of->x.row(row), scratch.data(), dim);
      const A* g = plain(grad + row * dim, scratch.data() + dim, dim);
      const int64_t which = row % of->scales * dim;
      const A *scale = of->scale + which, *from = x.data;
      if (dx != nullptr) {
        const Sums s = sums<A>(dim, [&](int64_t i, A& sx, A&, A&, A&) HK_LAMBDA { sx += g[i] * scale[i] * from[i]; });
        const A along = A(s.a / (x.norm * x.norm)), over = A(x.inverse);
        S* to = dx + row * dim;
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) store(to + i, (g[i] * scale[i] - along * from[i]) * over);
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

// The inputs of both ops, checked.
struct Given {
  at::Tensor x, scale;

  Given(const at::Tensor& rows, const at::Tensor& factors)
      : x(rows_like(rows, rows, "x")),
        scale(numbers(factors, {factors.size(0), rows.size(1)}, accumulate_dtype(rows), "scale")) {
    TORCH_CHECK_VALUE(scale.size(0) > 0 ? x.size(0) % scale.size(0) == 0 : x.size(0) == 0,
                      "the rows of scale must divide those of x, ", x.size(0), "; got ", scale.size(0));
  }

  template <class S>
  Scaled<S> scaled() const {
    return {matrix<S>(x), data<Accumulate<S>>(scale), scale.size(0), x.size(1)};
  }
};

at::Tensor scaled_unit_norm(const at::Tensor& x, const at::Tensor& scale) {
  const Given given(x, scale);
  const at::Tensor out = at::empty(x.sizes(), x.options());
  with_storage(x.scalar_type(), "x", [&](auto storage) {
    using S = decltype(storage);
    const Scaled<S> scaled = given.scaled<S>();
    S* to = mutable_data<S>(out);
    if (to == nullptr) return;
    at::parallel_for(0, x.size(0), grain(x.size(1)),
                     [&](int64_t begin, int64_t end) { simd::run<ScaledRows>(&scaled, to, begin, end); });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> scaled_unit_norm_backward(const at::Tensor& grad, const at::Tensor& x,
                                                             const at::Tensor& scale, bool need_x, bool need_scale) {
  const Given given(x, scale);
  const at::Tensor g = rows_like(grad, x, "grad").contiguous();
  const int64_t n = x.size(0), dim = x.size(1), scales = scale.size(0);
  const at::Tensor dx = wanted(need_x, x.sizes(), x, x.scalar_type());
  const int64_t turns = scales > 0 ? n / scales : 0, count = parts_of(turns);
  const at::Tensor parts = need_scale ? at::zeros({count, scales, dim}, x.options().dtype(at::kDouble)) : at::Tensor();
  // Where there are few turns through the scale the threads share its rows as well.
  const int64_t shares = std::clamp<int64_t>(64 / count, 1, std::max<int64_t>(1, scales));
  with_storage(x.scalar_type(), "x", [&](auto storage) {
    using S = decltype(storage);
    const Scaled<S> scaled = given.scaled<S>();
    const S* from = data<S>(g);
    S* to = mutable_data<S>(dx);
    double* sums = need_scale ? mutable_data<double>(parts) : nullptr;
    if (to == nullptr && sums == nullptr) return;
    at::parallel_for(0, count * shares, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t part = unit / shares, share = unit % shares;
        double* own = sums == nullptr ? nullptr : sums + part * scales * dim;
        for (int64_t turn = part * turns / count; turn < (part + 1) * turns / count; ++turn) {
          simd::run<ScaledBackwardRows>(&scaled, from, to, own, turn * scales + share * scales / shares,
                                        turn * scales + (share + 1) * scales / shares);
        }
      }
    });
  });
  const at::ScalarType wide = accumulate_dtype(x);
  return {dx, need_scale ? sum_of_parts(parts, wide) : wanted(false, {}, x, wide)};
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  m.impl("scaled_unit_norm", scaled_unit_norm);
  m.impl("scaled_unit_norm_backward", scaled_unit_norm_backward);
}

}  // namespace hyperkernels::sphere
