#include "vectors.h"

#include "arguments.h"

namespace hyperkernels::sphere {

namespace {

// The inputs of both ops, checked.
struct Given {
  Tensor x, v;
  VectorsKind kind;
  Dtype dtype;
  int64_t n, dim;

  Given(const Tensor& a, const Tensor& b, std::string_view name) : x(rows_like(a, a, "x")), v(rows_like(b, a, "v")) {
    HK_CHECK_VALUE(name == "tangent" || name == "exp" || name == "retract",
                   "kind must be tangent, exp or retract; got ", name);
    kind = name == "tangent" ? VectorsKind::kTangent : name == "exp" ? VectorsKind::kExp : VectorsKind::kRetract;
    dtype = x.scalar_type();
    n = x.size(0);
    dim = x.size(1);
  }

  template <class A>
  Vectors<A> vectors() const {
    return {in_rows<A>(x), in_rows<A>(v), dim, kind};
  }
};

Tensor sphere_vectors(const Tensor& x, const Tensor& v, std::string_view kind) {
  const Given given(x, v, kind);
  const Tensor out = empty({given.n, given.dim}, given.dtype);
  with_accumulator(given.dtype, "x", [&](auto zero) {
    using A = decltype(zero);
    const Vectors<A> vectors = given.vectors<A>();
    const OutRows<A> to = out_rows<A>(out);
    if (!to.wanted()) return;
    parallel_for(0, given.n, grain(given.dim),
                 [&](int64_t begin, int64_t end) { simd::run<VectorsRows>(&vectors, to, begin, end); });
  });
  return out;
}

std::tuple<Tensor, Tensor> sphere_vectors_backward(const Tensor& grad, const Tensor& x, const Tensor& v,
                                                   std::string_view kind, bool need_x, bool need_v) {
  const Given given(x, v, kind);
  const Tensor g = rows_like(grad, x, "grad");
  const Tensor dx = empty_if(need_x, {given.n, given.dim}, given.dtype);
  const Tensor dv = empty_if(need_v, {given.n, given.dim}, given.dtype);
  with_accumulator(given.dtype, "x", [&](auto zero) {
    using A = decltype(zero);
    const Vectors<A> vectors = given.vectors<A>();
    const InRows<A> from = in_rows<A>(g);
    const OutRows<A> to_x = out_rows<A>(dx), to_v = out_rows<A>(dv);
    if (!to_x.wanted() && !to_v.wanted()) return;
    parallel_for(0, given.n, grain(given.dim), [&](int64_t begin, int64_t end) {
      simd::run<VectorsBackwardRows>(&vectors, from, to_x, to_v, begin, end);
    });
  });
  return {dx, dv};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  HK_OP(m, "sphere_vectors", sphere_vectors);
  HK_OP(m, "sphere_vectors_backward", sphere_vectors_backward);
}

}  // namespace hyperkernels::sphere
