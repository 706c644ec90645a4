#include "points.h"

#include "arguments.h"

namespace hyperkernels::sphere {

namespace {

PointsKind kind_of(std::string_view kind, const Optional& t) {
  HK_CHECK_VALUE(kind == "angle" || kind == "slerp" || kind == "log", "kind must be angle, slerp or log; got ", kind);
  HK_CHECK_VALUE(t.has_value() == (kind == "slerp"), "t must be given for slerp, and for nothing else");
  return kind == "angle" ? PointsKind::kAngle : kind == "slerp" ? PointsKind::kSlerp : PointsKind::kLog;
}

// The inputs of both ops, checked.
struct Given {
  Tensor x, y;
  Optional t;
  PointsKind kind;
  Dtype dtype, wide;
  int64_t n, dim;

  Given(const Tensor& a, const Tensor& b, const Optional& part, std::string_view name)
      : x(rows_like(a, a, "x")), y(rows_like(b, a, "y")), kind(kind_of(name, part)) {
    dtype = x.scalar_type();
    wide = accumulate_dtype(dtype);
    n = x.size(0);
    dim = x.size(1);
    if (part.has_value()) t = numbers(*part, {n}, wide, "t");
  }

  template <class A>
  Points<A> points() const {
    return {in_rows<A>(x), in_rows<A>(y), data<A>(t), dim, kind};
  }
};

Tensor sphere_points(const Tensor& a, const Tensor& b, const Optional& t, std::string_view kind) {
  const Given given(a, b, t, kind);
  const bool is_angle = given.kind == PointsKind::kAngle;
  const Tensor out = is_angle ? empty({given.n}, given.wide) : empty({given.n, given.dim}, given.dtype);
  with_accumulator(given.dtype, "x", [&](auto zero) {
    using A = decltype(zero);
    const Points<A> points = given.points<A>();
    A* angles = is_angle ? result<A>(out) : nullptr;
    const OutRows<A> rows = out_rows<A>(out);
    if (out.numel() == 0) return;
    parallel_for(0, given.n, grain(given.dim),
                 [&](int64_t begin, int64_t end) { simd::run<PointsRows>(&points, angles, rows, begin, end); });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> sphere_points_backward(const Tensor& grad, const Tensor& a, const Tensor& b,
                                                          const Optional& t, std::string_view kind, bool need_x,
                                                          bool need_y, bool need_t) {
  const Given given(a, b, t, kind);
  const int64_t n = given.n, dim = given.dim;
  const bool is_angle = given.kind == PointsKind::kAngle;
  const Tensor g = is_angle ? numbers(grad, {n}, given.wide, "grad") : rows_like(grad, a, "grad");
  const Tensor dx = empty_if(need_x, {n, dim}, given.dtype), dy = empty_if(need_y, {n, dim}, given.dtype);
  const Tensor dt = empty_if(need_t && t.has_value(), {n}, given.wide);
  with_accumulator(given.dtype, "x", [&](auto zero) {
    using A = decltype(zero);
    const Points<A> points = given.points<A>();
    A* to_t = result<A>(dt);
    if (dim == 0) return std::fill_n(to_t, dt.numel(), A(0)), void();
    const A* angle_grad = is_angle ? data<A>(g) : nullptr;
    const InRows<A> rows = in_rows<A>(g);
    const OutRows<A> to_x = out_rows<A>(dx), to_y = out_rows<A>(dy);
    parallel_for(0, n, grain(dim), [&](int64_t begin, int64_t end) {
      simd::run<PointsBackwardRows>(&points, angle_grad, rows, to_x, to_y, to_t, begin, end);
    });
  });
  return {dx, dy, dt};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  HK_OP(m, "sphere_points", sphere_points);
  HK_OP(m, "sphere_points_backward", sphere_points_backward);
}

}  // namespace hyperkernels::sphere
