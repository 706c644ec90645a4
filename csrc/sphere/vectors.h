// Vectors at points: their tangent part w, and the point that w leads to, A(|w|) x^ + B(|w|) w.
#pragma once

#include "rows.h"

namespace hyperkernels::sphere {

enum class VectorsKind { kTangent, kExp, kRetract };

template <class A>
struct Vectors {
  InRows<A> x, v;
  int64_t dim;
  VectorsKind kind;
};

// v = w + along x, w written to `tangent`.
template <class A>
HK_INLINE double split(const Row<A>& x, const A* v, A* tangent, int64_t dim) {
  const double along = simd::dot<A>(x.data, v, dim) / (x.norm * x.norm);
  const A multiple = A(along);
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) tangent[i] = v[i] - multiple * x.data[i];
  return along;
}

// A and B at n = |w|, and of each the derivative over n.
struct Path {
  double a, b, slope_a, slope_b;
};

// (cos n - sin(n) / n) / n^2, by its series where the difference loses digits.
inline double sinc_slope(double n) {
  if (!(n < 0.3)) return (std::cos(n) - std::sin(n) / n) / (n * n);
  const double q = n * n;
  double p = -14. / 1307674368000;
  p = p * q + 12. / 6227020800;
  p = p * q - 10. / 39916800;
  p = p * q + 8. / 362880;
  p = p * q - 6. / 5040;
  p = p * q + 4. / 120;
  return p * q - 2. / 6;
}

inline Path path(VectorsKind kind, double n) {
  if (kind == VectorsKind::kTangent) return {0, 1, 0, 0};
  if (kind == VectorsKind::kExp) {
    const double sinc = n == 0 ? 1 : std::sin(n) / n;
    return {std::cos(n), sinc, -sinc, sinc_slope(n)};
  }
  const double scale = 1 / std::hypot(1, n), slope = -scale * scale * scale;
  return {scale, scale, slope, slope};
}

struct VectorsRows {
  template <class A>
  static HK_INLINE void run(const Vectors<A>* of, OutRows<A> out, int64_t begin, int64_t end) {
    const int64_t dim = of->dim;
    std::vector<A> scratch(3 * dim + out.scratch(dim));
    A *kept = scratch.data(), *w = kept + 2 * dim;
    for (int64_t row = begin; row < end; ++row) {
      const Row<A> x = bring(of->x, row, kept, dim);
      split(x, of->v.read(row, kept + dim, dim), w, dim);
      const Path at = path(of->kind, of->kind == VectorsKind::kTangent ? 0 : simd::length(w, dim));
      const A a = A(at.a / x.norm), b = A(at.b);
      A* to = out.row(row, kept + 3 * dim, dim);
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i) to[i] = a * x.data[i] + b * w[i];
      out.finish(row, to, dim);
    }
  }
};

// With p = x^ . v and g' = g - (g . x^) x^: dv = B g' + nu w and dx^ = (A - p B) g' - (p nu + B (g . x^)) w, where
// nu = (A' (g . x^) + B' (g . w)) / |w|.
struct VectorsBackwardRows {
  template <class A>
  static HK_INLINE void run(const Vectors<A>* of, InRows<A> grad, OutRows<A> dx, OutRows<A> dv, int64_t begin,
                            int64_t end) {
    const int64_t dim = of->dim;
    std::vector<A> scratch(5 * dim);
    A *kept = scratch.data(), *w = kept + 3 * dim, *written = kept + 4 * dim;
    for (int64_t row = begin; row < end; ++row) {
      const Row<A> x = bring(of->x, row, kept, dim);
      const double p = split(x, of->v.read(row, kept + dim, dim), w, dim) * x.norm;
      const A* g = grad.read(row, kept + 2 * dim, dim);
      const Path at = path(of->kind, of->kind == VectorsKind::kTangent ? 0 : simd::length(w, dim));
      const Sums s = sums<A>(dim, [&](int64_t i, A& gx, A& gw, A&, A&) HK_LAMBDA {
        gx += g[i] * x.data[i];
        gw += g[i] * w[i];
      });
      const double gx = s.a / x.norm, nu = at.slope_a * gx + at.slope_b * s.b;
      write(dv, row, at.b, nu, 1, gx, x, w, g, written, dim);
      write(dx, row, at.a - p * at.b, -(p * nu + at.b * gx), x.inverse, gx, x, w, g, written, dim);
    }
  }

  // factor (of_g g' + of_w w)
  template <class A>
  static HK_INLINE void write(OutRows<A> out, int64_t row, double of_g, double of_w, double factor, double gx,
                              const Row<A>& x, const A* w, const A* g, A* scratch, int64_t dim) {
    if (!out.wanted()) return;
    A* to = out.row(row, scratch, dim);
    if (factor == 0) {
      std::fill(to, to + dim, A(0));
      return out.finish(row, to, dim);
    }
    const A a = A(-of_g * gx / x.norm * factor), b = A(of_w * factor), c = A(of_g * factor);
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) to[i] = a * x.data[i] + b * w[i] + c * g[i];
    out.finish(row, to, dim);
  }
};

}  // namespace hyperkernels::sphere
