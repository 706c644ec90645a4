// Vectors at points: their tangent part w, and the point that w leads to, A(|w|) x^ + B(|w|) w.

#include <torch/library.h>

#include "rows.h"

namespace hyperkernels::sphere {

namespace {

using simd::store;

enum class Kind { kTangent, kExp, kRetract };

template <class S>
struct Vectors {
  Matrix<S> x, v;
  int64_t dim;
  Kind kind;
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

inline Path path(Kind kind, double n) {
  if (kind == Kind::kTangent) return {0, 1, 0, 0};
  if (kind == Kind::kExp) {
    const double sinc = n == 0 ? 1 : std::sin(n) / n;
    return {std::cos(n), sinc, -sinc, sinc_slope(n)};
  }
  const double scale = 1 / std::hypot(1, n), slope = -scale * scale * scale;
  return {scale, scale, slope, slope};
}

struct VectorsRows {
  template <class S>
  static HK_INLINE void run(const Vectors<S>* of, S* out, int64_t begin, int64_t end) {
    using A = Accumulate<S>;
    const int64_t dim = of->dim;
    std::vector<A> scratch(3 * dim);
    A *kept = scratch.data(), *w = kept + 2 * dim;
    for (int64_t row = begin; row < end; ++row) {
      const Row<A> x = bring(of->x.row(row), kept, dim);
      split(x, plain(of->v.row(row), kept + dim, dim), w, dim);
      const Path at = path(of->kind, of->kind == Kind::kTangent ? 0 : simd::length(w, dim));
      const A a = A(at.a / x.norm), b = A(at.b);
      S* to = out + row * dim;
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i) store(to + i, a * x.data[i] + b * w[i]);
    }
  }
};

// With p = x^ . v and g' = g - (g . x^) x^: dv = B g' + nu w and dx^ = (A - p B) g' - (p nu + B (g . x^)) w, where
// nu = (A' (g . x^) + B' (g . w)) / |w|.
struct VectorsBackwardRows {
  template <class S>
  static HK_INLINE void run(const Vectors<S>* of, const S* grad, S* dx, S* dv, int64_t begin, int64_t end) {
    using A = Accumulate<S>;
    const int64_t dim = of->dim;
    std::vector<A> scratch(4 * dim);
    A *kept = scratch.data(), *w = kept + 3 * dim;
    for (int64_t row = begin; row < end; ++row) {
      const Row<A> x = bring(of->x.row(row), kept, dim);
      const double p = split(x, plain(of->v.row(row), kept + dim, dim), w, dim) * x.norm;
      const A* g = plain(grad + row * dim, kept + 2 * dim, dim);
      const Path at = path(of->kind, of->kind == Kind::kTangent ? 0 : simd::length(w, dim));
      const Sums s = sums<A>(dim, [&](int64_t i, A& gx, A& gw, A&, A&) HK_LAMBDA {
        gx += g[i] * x.data[i];
        gw += g[i] * w[i];
      });
      const double gx = s.a / x.norm, nu = at.slope_a * gx + at.slope_b * s.b;
      write(dv, row, at.b, nu, 1, gx, x, w, g, dim);
      write(dx, row, at.a - p * at.b, -(p * nu + at.b * gx), x.inverse, gx, x, w, g, dim);
    }
  }

  // factor (of_g g' + of_w w)
  template <class S, class A>
  static HK_INLINE void write(S* out, int64_t row, double of_g, double of_w, double factor, double gx, const Row<A>& x,
                              const A* w, const A* g, int64_t dim) {
    if (out == nullptr) return;
    S* to = out + row * dim;
    if (factor == 0) {
      std::fill(to, to + dim, S{});
      return;
    }
    const A a = A(-of_g * gx / x.norm * factor), b = A(of_w * factor), c = A(of_g * factor);
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) store(to + i, a * x.data[i] + b * w[i] + c * g[i]);
  }
};

// The inputs of both ops, checked.
struct Given {
  at::Tensor x, v;
  Kind kind;

  Given(const at::Tensor& a, const at::Tensor& b, c10::string_view name)
      : x(rows_like(a, a, "x")), v(rows_like(b, a, "v")) {
    TORCH_CHECK_VALUE(name == "tangent" || name == "exp" || name == "retract",
                      "kind must be tangent, exp or retract; got ", name);
    kind = name == "tangent" ? Kind::kTangent : name == "exp" ? Kind::kExp : Kind::kRetract;
  }

  template <class S>
  Vectors<S> vectors() const {
    return {matrix<S>(x), matrix<S>(v), x.size(1), kind};
  }
};

at::Tensor sphere_vectors(const at::Tensor& x, const at::Tensor& v, c10::string_view kind) {
  const Given given(x, v, kind);
  const at::Tensor out = at::empty(x.sizes(), x.options());
  with_storage(x.scalar_type(), "x", [&](auto storage) {
    using S = decltype(storage);
    const Vectors<S> vectors = given.vectors<S>();
    S* to = mutable_data<S>(out);
    if (to == nullptr) return;
    at::parallel_for(0, x.size(0), grain(x.size(1)),
                     [&](int64_t begin, int64_t end) { simd::run<VectorsRows>(&vectors, to, begin, end); });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> sphere_vectors_backward(const at::Tensor& grad, const at::Tensor& x,
                                                           const at::Tensor& v, c10::string_view kind, bool need_x,
                                                           bool need_v) {
  const Given given(x, v, kind);
  const at::Tensor g = rows_like(grad, x, "grad").contiguous();
  const at::Tensor dx = wanted(need_x, x.sizes(), x, x.scalar_type());
  const at::Tensor dv = wanted(need_v, x.sizes(), x, x.scalar_type());
  with_storage(x.scalar_type(), "x", [&](auto storage) {
    using S = decltype(storage);
    const Vectors<S> vectors = given.vectors<S>();
    const S* from = data<S>(g);
    S *to_x = mutable_data<S>(dx), *to_v = mutable_data<S>(dv);
    if (to_x == nullptr && to_v == nullptr) return;
    at::parallel_for(0, x.size(0), grain(x.size(1)), [&](int64_t begin, int64_t end) {
      simd::run<VectorsBackwardRows>(&vectors, from, to_x, to_v, begin, end);
    });
  });
  return {dx, dv};
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  m.impl("sphere_vectors", sphere_vectors);
  m.impl("sphere_vectors_backward", sphere_vectors_backward);
}

}  // namespace hyperkernels::sphere
