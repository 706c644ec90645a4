// Pairs of points: their angle, and the geodesic that joins them.
#pragma once

#include "rows.h"

namespace hyperkernels::sphere {

enum class PointsKind { kAngle, kSlerp, kLog };

// |y^ + x^| in units of the accumulator's epsilon, below which two points count as opposite.
constexpr double kOpposite = 16;
constexpr double kPi = 3.14159265358979323846;

// How y lies as seen from x. The part of y that is orthogonal to x is w = e - along x with e = y + shift x. Where the
// points are near or nearly opposite, e is y^ - x^ or y^ + x^ but for its length: it keeps the digits that y . x has
// lost, and whatever the rounding of shift, y remains the sum of w and a multiple of x.
template <class A>
struct Geodesic {
  A shift;
  double along, inverse;  // inverse: 1 / |w|, 0 where w = 0
  double angle, cosine, sine;
  bool opposite;
};

template <class A>
HK_INLINE Geodesic<A> geodesic(const Pair<A>& pair, int64_t dim) {
  constexpr double kLimit = kOpposite * std::numeric_limits<A>::epsilon();
  const Row<A>&x = pair.x, &y = pair.y;
  Geodesic<A> way;
  double squares = y.is_short ? 0 : y.norm * y.norm, product = pair.product;  // |e|^2 and e . x
  way.shift = 0;
  way.cosine = product / (x.norm * y.norm);
  if (std::abs(way.cosine) > 0.5) {
    way.shift = A(way.cosine > 0 ? -y.norm / x.norm : y.norm / x.norm);
    const Sums s = sums<A>(dim, [&](int64_t i, A& ee, A& ex, A&, A&) HK_LAMBDA {
      const A e = y.data[i] + way.shift * x.data[i];
      ee += e * e;
      ex += e * x.data[i];
    });
    squares = s.a;
    product = s.b;
  }
  way.along = product / (x.norm * x.norm);
  way.cosine = (way.along - double(way.shift)) * x.norm / y.norm;
  // Of parallel rows of different lengths only the rounding of e is left.
  const double rest = squares - product * way.along;
  const double width = rest <= kOpposite * std::numeric_limits<A>::epsilon() * squares ? 0 : std::sqrt(rest);
  way.inverse = width == 0 ? 0 : 1 / width;
  way.sine = y.is_short ? 1 : width / y.norm;  // a zero row is at a right angle from every other
  way.opposite =
      (x.is_short && y.is_short) || way.sine * way.sine + (1 + way.cosine) * (1 + way.cosine) <= kLimit * kLimit;
  way.angle = way.opposite ? kPi : double(std::atan2(A(way.sine), A(way.cosine)));
  return way;
}

// The unit tangent at x^ towards the axis of its smallest coordinate: weight (axis - position x^).
struct Crossing {
  int64_t axis;
  double position, weight;
};

template <class A>
HK_INLINE Crossing crossing(const Row<A>& x, int64_t dim) {
  int64_t axis = 0;
  for (int64_t i = 1; i < dim; ++i) axis = std::abs(x.data[i]) < std::abs(x.data[axis]) ? i : axis;
  const double position = double(x.data[axis]) / x.norm, rest = 1 - position * position;
  return {axis, position, rest < 0.25 ? 0 : 1 / std::sqrt(rest)};  // on a circle of no width there is none
}

template <class A>
struct Points {
  InRows<A> x, y;
  const A* t;
  int64_t dim;
  PointsKind kind;
};

// Writes along the geodesic: forward x^ + sideways u, where u is the unit tangent at x^ that leads to y^.
struct PointsRows {
  template <class A>
  static HK_INLINE void run(const Points<A>* of, A* angles, OutRows<A> out, int64_t begin, int64_t end) {
    const int64_t dim = of->dim;
    std::vector<A> scratch(2 * dim + out.scratch(dim));
    for (int64_t row = begin; row < end; ++row) {
      const Pair<A> pair = bring(of->x, of->y, row, scratch.data(), dim);
      const Row<A>&x = pair.x, &y = pair.y;
      const Geodesic<A> way = geodesic(pair, dim);
      if (of->kind == PointsKind::kAngle) {
        angles[row] = A(way.angle);
        continue;
      }
      const A turned = of->kind == PointsKind::kLog ? A(0) : of->t[row] * A(way.angle);
      const double forward = of->kind == PointsKind::kLog ? 0 : double(simd::cos(turned));
      const double sideways = of->kind == PointsKind::kLog ? way.angle : double(simd::sin(turned));
      A* to = out.row(row, scratch.data() + 2 * dim, dim);
      if (way.opposite) {
        const Crossing c = crossing(x, dim);
        const A scale = A((forward - sideways * c.weight * c.position) / x.norm);
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) to[i] = scale * x.data[i];
        to[c.axis] = A(scale * x.data[c.axis] + sideways * c.weight);
      } else {
        const A across = A(sideways * way.inverse), scale = A(forward / x.norm - sideways * way.inverse * way.along);
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) {
          to[i] = scale * x.data[i] + across * (y.data[i] + way.shift * x.data[i]);
        }
      }
      out.finish(row, to, dim);
    }
  }
};

// A gradient: point x^ + tangent u + given g.
struct Combination {
  double point, tangent, given;
};

struct Gradients {
  Combination dx, dy;  // of x^ and y^
  double dt;
};

// gx = g . x^ and gu = g . u; what of g is orthogonal to both is scaled, in dx and dy alike by how geodesics spread.
template <class A>
HK_INLINE Gradients gradients(PointsKind kind, const Geodesic<A>& way, double t, double gx, double gu) {
  const double angle = way.angle, sine = way.sine, cosine = way.cosine;
  const auto spread = [&](double share) { return sine == 0 ? share : double(std::sin(A(share * angle))) / sine; };
  if (kind == PointsKind::kSlerp) {
    const double change = gu * std::cos(A(t * angle)) - gx * std::sin(A(t * angle));
    const double from = spread(1 - t), to = spread(t);
    return {{-from * gx, (1 - t) * change - from * gu, from},
            {-t * change * sine - to * gx, t * change * cosine - to * gu, to},
            angle * change};
  }
  const double ratio = sine == 0 ? 1 : angle / sine, from = -ratio * cosine;
  return {{-from * gx, -(gu + angle * gx) - from * gu, from},
          {-gu * sine - ratio * gx, gu * cosine - ratio * gu, ratio},
          0};
}

struct PointsBackwardRows {
  template <class A>
  static HK_INLINE void run(const Points<A>* of, const A* angle_grad, InRows<A> grad, OutRows<A> dx, OutRows<A> dy,
                            A* dt, int64_t begin, int64_t end) {
    const int64_t dim = of->dim;
    std::vector<A> scratch(4 * dim);
    for (int64_t row = begin; row < end; ++row) {
      const Pair<A> pair = bring(of->x, of->y, row, scratch.data(), dim);
      const Row<A>&x = pair.x, &y = pair.y;
      const Geodesic<A> way = geodesic(pair, dim);
      const A* g = x.data;  // of an angle there is no gradient row: this one is read with a factor of 0
      Gradients result;
      if (of->kind == PointsKind::kAngle) {
        const double given = double(angle_grad[row]);
        result = {{0, -given, 0}, {-given * way.sine, given * way.cosine, 0}, 0};
      } else {
        g = grad.read(row, scratch.data() + 2 * dim, dim);
        const Sums s = sums<A>(dim, [&](int64_t i, A& gx, A& ge, A&, A&) HK_LAMBDA {
          gx += g[i] * x.data[i];
          ge += g[i] * (y.data[i] + way.shift * x.data[i]);
        });
        const double t = of->kind == PointsKind::kSlerp ? double(of->t[row]) : 0, gx = s.a / x.norm;
        result = gradients(of->kind, way, t, gx, (s.b - way.along * s.a) * way.inverse);
        if (way.opposite) {
          const Crossing c = crossing(x, dim);
          const double gc = c.weight * (double(g[c.axis]) - c.position * gx);
          result.dt = way.angle * (gc * std::cos(A(t * way.angle)) - gx * std::sin(A(t * way.angle)));
        }
      }
      A* written = scratch.data() + 3 * dim;
      if (dt != nullptr) dt[row] = A(result.dt);
      write(dx, row, result.dx, way.opposite ? 0 : x.inverse, x, y, g, way, written, dim);
      write(dy, row, result.dy, way.opposite ? 0 : y.inverse, x, y, g, way, written, dim);
    }
  }

  template <class A>
  static HK_INLINE void write(OutRows<A> out, int64_t row, const Combination& of, double factor, const Row<A>& x,
                              const Row<A>& y, const A* g, const Geodesic<A>& way, A* scratch, int64_t dim) {
    if (!out.wanted()) return;
    A* to = out.row(row, scratch, dim);
    if (factor == 0) {
      std::fill(to, to + dim, A(0));
      return out.finish(row, to, dim);
    }
    const double tangent = of.tangent * way.inverse;
    const A a = A((of.point / x.norm - tangent * way.along) * factor), b = A(tangent * factor),
            c = A(of.given * factor);
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) {
      to[i] = a * x.data[i] + b * (y.data[i] + way.shift * x.data[i]) + c * g[i];
    }
    out.finish(row, to, dim);
  }
};

}  // namespace hyperkernels::sphere
