// The normalised residual of nGPT: r / |r| with r = h^ + alpha (block^ - h^).
#pragma once

#include "rows.h"

namespace hyperkernels::sphere {

template <class A>
struct Residuals {
  InRows<A> h, block;
  const A* alpha;
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
  template <class A>
  static HK_INLINE void run(const Residuals<A>* of, OutRows<A> out, int64_t begin, int64_t end) {
    const int64_t dim = of->dim;
    std::vector<A> scratch(3 * dim + out.scratch(dim));
    A *kept = scratch.data(), *r = kept + 2 * dim;
    for (int64_t row = begin; row < end; ++row) {
      const Pair<A> pair = bring(of->h, of->block, row, kept, dim);
      const Mixture<A> m = mix(pair.x, pair.y, of->alpha, r, dim);
      const A scale = A(m.inverse);
      A* to = out.row(row, kept + 3 * dim, dim);
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i) to[i] = scale * r[i];
      out.finish(row, to, dim);
    }
  }
};

// With g_r = (g - (g . out) out) / |r|: (1 - alpha) g_r and alpha g_r, each without its part along h^ and block^, over
// |h| and |block|; dalpha is the sum over rows of (block^ - h^) g_r.
struct ResidualBackwardRows {
  template <class A>
  static HK_INLINE void run(const Residuals<A>* of, InRows<A> grad, OutRows<A> dh, OutRows<A> dblock, double* dalpha,
                            int64_t begin, int64_t end) {
    const int64_t dim = of->dim;
    const A* alpha = of->alpha;
    std::vector<A> scratch(5 * dim);
    A *kept = scratch.data(), *r = kept + 3 * dim, *written = kept + 4 * dim;
    for (int64_t row = begin; row < end; ++row) {
      const Pair<A> pair = bring(of->h, of->block, row, kept, dim);
      const Mixture<A> m = mix(pair.x, pair.y, alpha, r, dim);
      const A* g = grad.read(row, kept + 2 * dim, dim);
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
      if (dh.wanted()) {
        const A less = A((s.a - s.b) / (h.norm * h.norm)), over = A(h.inverse);
        A* to = dh.row(row, written, dim);
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) to[i] = (gr[i] - alpha[i] * gr[i] - less * h.data[i]) * over;
        dh.finish(row, to, dim);
      }
      if (dblock.wanted()) {
        const A less = A(s.c / (block.norm * block.norm)), over = A(block.inverse);
        A* to = dblock.row(row, written, dim);
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) to[i] = (alpha[i] * gr[i] - less * block.data[i]) * over;
        dblock.finish(row, to, dim);
      }
      if (dalpha != nullptr) {
        const A unit = A(1 / h.norm);
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) dalpha[i] += double((block.data[i] * m.ratio - h.data[i]) * unit * gr[i]);
      }
    }
  }
};

}  // namespace hyperkernels::sphere
