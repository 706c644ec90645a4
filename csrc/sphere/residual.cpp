// The normalised residual of nGPT: r / |r| with r = h^ + alpha (block^ - h^).

#include <torch/library.h>

#include "rows.h"

namespace hyperkernels::sphere {

namespace {

using simd::store;

template <class S>
struct Residuals {
  Matrix<S> h, block;
  const Accumulate<S>* alpha;
  int64_t dim;
};

// A row of r in units of the row of h, so that r vanishes exactly where it should.
template <class A>
struct Mixture {
  A ratio;         // |h| / |block| of the rows
  double inverse;  // 1 / the norm of the row of r as it is kept; 0 where |r| < kEps
};

template <class A>
HK_INLINE Mixture<A> mix(const Row<A>& h, const Row<A>& block, const A* alpha, A* r, int64_t dim) {
  const A ratio = A(h.norm / block.norm);
  const double squares = sums<A>(dim, [&](int64_t i, A& rr, A&, A&, A&) HK_LAMBDA {
                           const A value = h.data[i] + alpha[i] * (block.data[i] * ratio - h.data[i]);
                           r[i] = value;
                           rr += value * value;
                         }).a;
  const double norm = squares > 1e-24 && squares < 1e37 ? std::sqrt(squares) : simd::length(r, dim);
  return {ratio, norm < kEps * h.norm ? 0 : 1 / norm};
}

struct ResidualRows {
  template <class S>
  static HK_INLINE void run(const Residuals<S>* of, S* out, int64_t begin, int64_t end) {
    using A = Accumulate<S>;
    const int64_t dim = of->dim;
    std::vector<A> scratch(3 * dim);
    A *kept = scratch.data(), *r = kept + 2 * dim;
    for (int64_t row = begin; row < end; ++row) {
      const Pair<A> pair = bring(of->h.row(row), of->block.row(row), kept, dim);
      const Mixture<A> m = mix(pair.x, pair.y, of->alpha, r, dim);
      const A scale = A(m.inverse);
      S* to = out + row * dim;
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i) store(to + i, scale * r[i]);
    }
  }
};

// With g_r = (g - (g . out) out) / |r|: (1 - alpha) g_r and alpha g_r, each without its part along h^ and block^, over
// |h| and |block|; dalpha is the sum over rows of (block^ - h^) g_r.
struct ResidualBackwardRows {
  template <class S>
  static HK_INLINE void run(const Residuals<S>* of, const S* grad, S* dh, S* dblock, double* dalpha, int64_t begin,
                            int64_t end) {
    using A = Accumulate<S>;
    const int64_t dim = of->dim;
    const A* alpha = of->alpha;
    std::vector<A> scratch(4 * dim);
    A *kept = scratch.data(), *r = kept + 3 * dim;
    for (int64_t row = begin; row < end; ++row) {
      const Pair<A> pair = bring(of->h.row(row), of->block.row(row), kept, dim);
      const Mixture<A> m = mix(pair.x, pair.y, alpha, r, dim);
      const A* g = plain(grad + row * dim, kept + 2 * dim, dim);
      const Row<A>&h = pair.x, &block = pair.y;
      const A multiple = A(simd::dot<A>(g, r, dim) * m.inverse * m.inverse), scale = A(m.inverse * h.norm);
      A* gr = r;  // g_r takes the place of r
      const Sums s = sums<A>(dim, [&](int64_t i, A& along_h, A& alpha_h, A& alpha_block, A&) HK_LAMBDA {
        const A value = (g[i] - multiple * r[i]) * scale, moved = alpha[i] * value;
        gr[i] = value;
        along_h += value * h.data[i];
        alpha_h += moved * h.data[i];
        alpha_block += moved * block.data[i];
      });
      if (dh != nullptr) {
        const A less = A((s.a - s.b) / (h.norm * h.norm)), over = A(h.inverse);
        S* to = dh + row * dim;
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) store(to + i, (gr[i] - alpha[i] * gr[i] - less * h.data[i]) * over);
      }
      if (dblock != nullptr) {
        const A less = A(s.c / (block.norm * block.norm)), over = A(block.inverse);
        S* to = dblock + row * dim;
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) store(to + i, (alpha[i] * gr[i] - less * block.data[i]) * over);
      }
      if (dalpha != nullptr) {
        const A unit = A(1 / h.norm);
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) dalpha[i] += double((block.data[i] * m.ratio - h.data[i]) * unit * gr[i]);
      }
    }
  }
};

// The inputs of both ops, checked.
struct Given {
  at::Tensor h, block, alpha;

  Given(const at::Tensor& a, const at::Tensor& b, const at::Tensor& steps)
      : h(rows_like(a, a, "h")),
        block(rows_like(b, a, "block")),
        alpha(numbers(steps, {a.size(1)}, accumulate_dtype(a), "alpha")) {}

  template <class S>
  Residuals<S> residuals() const {
    return {matrix<S>(h), matrix<S>(block), data<Accumulate<S>>(alpha), h.size(1)};
  }
};

at::Tensor sphere_residual(const at::Tensor& h, const at::Tensor& block, const at::Tensor& alpha) {
  const Given given(h, block, alpha);
  const at::Tensor out = at::empty(h.sizes(), h.options());
  with_storage(h.scalar_type(), "h", [&](auto storage) {
    using S = decltype(storage);
    const Residuals<S> residuals = given.residuals<S>();
    S* to = mutable_data<S>(out);
    if (to == nullptr) return;
    at::parallel_for(0, h.size(0), grain(h.size(1)),
                     [&](int64_t begin, int64_t end) { simd::run<ResidualRows>(&residuals, to, begin, end); });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> sphere_residual_backward(const at::Tensor& grad, const at::Tensor& h,
                                                                        const at::Tensor& block,
                                                                        const at::Tensor& alpha, bool need_h,
                                                                        bool need_block, bool need_alpha) {
  const Given given(h, block, alpha);
  const at::Tensor g = rows_like(grad, h, "grad").contiguous();
  const int64_t n = h.size(0), dim = h.size(1);
  const at::Tensor dh = wanted(need_h, h.sizes(), h, h.scalar_type());
  const at::Tensor dblock = wanted(need_block, h.sizes(), h, h.scalar_type());
  const int64_t count = parts_of(n);
  const at::Tensor parts = need_alpha ? at::zeros({count, dim}, h.options().dtype(at::kDouble)) : at::Tensor();
  with_storage(h.scalar_type(), "h", [&](auto storage) {
    using S = decltype(storage);
    const Residuals<S> residuals = given.residuals<S>();
    const S* from = data<S>(g);
    S *to_h = mutable_data<S>(dh), *to_block = mutable_data<S>(dblock);
    double* sums = need_alpha ? mutable_data<double>(parts) : nullptr;
    if (to_h == nullptr && to_block == nullptr && sums == nullptr) return;
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        simd::run<ResidualBackwardRows>(&residuals, from, to_h, to_block, sums == nullptr ? sums : sums + part * dim,
                                        part * n / count, (part + 1) * n / count);
      }
    });
  });
  return {dh, dblock,
          need_alpha ? sum_of_parts(parts, accumulate_dtype(h)) : wanted(false, {}, h, accumulate_dtype(h))};
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  m.impl("sphere_residual", sphere_residual);
  m.impl("sphere_residual_backward", sphere_residual_backward);
}

}  // namespace hyperkernels::sphere
